//! What containerd says on the standard input of `start`, and its options for
//! the runtime.
//!
//! * containerd up to 2.2: nothing, or the runtime's options as a
//!   `google.protobuf.Any`.
//! * containerd from 2.3 on: `BootstrapParams` as JSON, with the options among
//!   its extensions (containerd.runtime.bootstrap.v1).

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use casemate_config::Config;
use containerd_shim_protos::{
    protobuf::{CodedInputStream, Message, rt::WireType, well_known_types::any::Any},
    shim::oci::Options as RuncOptions,
};
use serde::Deserialize;

/// Options of any runtime (containerd's runtimeoptions.v1), as Kubernetes and
/// Docker write `ConfigPath`.
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";

/// The same type as containerd calls it since 1.7.
const RUNTIME_OPTIONS_NEW: &str = "containerd.runtimeoptions.v1.Options";

/// Numbers of its fields: a path, and what else the client's configuration has.
const CONFIG_PATH: u32 = 2;
const CONFIG_BODY: u32 = 3;

/// Options of the runc shim, which clients send to whatever runtime there is.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// What `start` is asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// What the runtime is to do.
    pub(super) options: Options,
    /// The answer is to be a `BootstrapResult`.
    pub(super) bootstrap: Option<Bootstrap>,
}

/// The runtime's options, as far as they matter here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// The configuration file that is to be read instead of the usual ones.
    path: Option<PathBuf>,
    /// Keys of the configuration that containerd's own has: TOML.
    body: Option<String>,
}

impl Options {
    /// The configuration that they mean.
    ///
    /// # Errors
    /// A file that is not there; keys that are unknown or have bad values.
    pub(super) fn config(&self) -> Result<Config> {
        let mut config = Config::load(self.path.as_deref())?;
        if let Some(body) = &self.body {
            config.apply_text("options of the runtime", body)?;
        }
        Ok(config)
    }
}

/// What containerd says of itself in `BootstrapParams` and nowhere else.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bootstrap {
    /// Where it takes events (ttrpc).
    pub(super) events: String,
    /// Log everything.
    pub(super) debug: bool,
}

/// `BootstrapParams` as far as they matter here, in protobuf's JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    #[serde(alias = "containerd_ttrpc_address", default)]
    containerd_ttrpc_address: String,
    #[serde(alias = "log_level", default)]
    log_level: serde_json::Value,
    #[serde(default)]
    extensions: Vec<Extension>,
}

/// The levels below INFO, which is 0: by name, or by number as protobuf's JSON has
/// those that it does not know.
fn is_verbose(level: &serde_json::Value) -> bool {
    let named = level
        .as_str()
        .is_some_and(|name| ["LOG_LEVEL_DEBUG", "LOG_LEVEL_TRACE"].contains(&name));
    named || level.as_i64().is_some_and(|number| number < 0)
}

#[derive(Deserialize)]
struct Extension {
    #[serde(default)]
    value: serde_json::Value,
}

impl Request {
    pub(super) fn parse(input: &[u8]) -> Result<Self> {
        if input.first() == Some(&b'{') {
            return Self::bootstrap(input).context("bootstrap parameters");
        }
        let any = Any::parse_from_bytes(input).context("options of the runtime")?;
        Ok(Self {
            options: options(&any)?,
            bootstrap: None,
        })
    }

    fn bootstrap(input: &[u8]) -> Result<Self> {
        let params: Params = serde_json::from_slice(input)?;
        let mut paths = params.extensions.iter().rev().filter_map(|extension| {
            let value = extension.value.as_object()?;
            let kind = value.get("@type")?.as_str()?;
            let known = [RUNTIME_OPTIONS, RUNTIME_OPTIONS_NEW];
            known
                .iter()
                .any(|name| kind.ends_with(name))
                .then_some(())?;
            let path = value
                .get("configPath")
                .or_else(|| value.get("config_path"))?;
            path.as_str()
        });
        let config = paths.next().filter(|path| !path.is_empty());
        let has_body = params.extensions.iter().any(|extension| {
            let body = extension.value.get("configBody");
            body.and_then(serde_json::Value::as_str)
                .is_some_and(|body| !body.is_empty())
        });
        ensure!(
            !has_body,
            "options of the runtime: keys among them are not understood here; write them to a \
             file and name it with ConfigPath"
        );
        Ok(Self {
            options: Options {
                path: config.map(absolute).transpose()?,
                body: None,
            },
            bootstrap: Some(Bootstrap {
                events: params.containerd_ttrpc_address,
                debug: is_verbose(&params.log_level),
            }),
        })
    }
}

/// # Errors
/// For options of an unknown type, and a path that is not absolute.
fn options(any: &Any) -> Result<Options> {
    let kind = any.type_url.rsplit('/').next().unwrap_or_default();
    match kind {
        "" => Ok(Options::default()),
        RUNTIME_OPTIONS | RUNTIME_OPTIONS_NEW => {
            let field = |number| {
                let field = string_field(&any.value, number).with_context(|| kind.to_owned())?;
                Ok::<_, anyhow::Error>(field.filter(|text| !text.is_empty()))
            };
            Ok(Options {
                path: field(CONFIG_PATH)?
                    .map(|path| absolute(&path))
                    .transpose()?,
                body: field(CONFIG_BODY)?,
            })
        }
        // How to call runc is nothing that matters here. Docker sends it always.
        RUNC_OPTIONS => {
            RuncOptions::parse_from_bytes(&any.value).with_context(|| kind.to_owned())?;
            Ok(Options::default())
        }
        other => anyhow::bail!(
            "options of the runtime: type {other:?} is unknown; {RUNTIME_OPTIONS} with \
             ConfigPath is meant"
        ),
    }
}

fn absolute(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    ensure!(
        path.is_absolute(),
        "options of the runtime: ConfigPath {} is not absolute",
        path.display()
    );
    Ok(path)
}

/// A string field of a message whose other fields do not matter.
fn string_field(message: &[u8], number: u32) -> Result<Option<String>> {
    let mut stream = CodedInputStream::from_bytes(message);
    let mut found = None;
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        let wire = WireType::new(tag & 7).context("malformed field")?;
        if tag >> 3 == number && wire == WireType::LengthDelimited {
            found = Some(stream.read_string()?);
        } else {
            stream.skip_field(wire)?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(kind: &str, value: &[u8]) -> Vec<u8> {
        let any = Any {
            type_url: kind.to_owned(),
            value: value.to_vec(),
            ..Default::default()
        };
        any.write_to_bytes().unwrap()
    }

    #[test]
    fn the_path_of_the_configuration_is_found() {
        assert_eq!(Request::parse(b"").unwrap(), Request::default());
        // As the CRI plugin writes it.
        let options = b"\x0a\x03any\x12\x0b/etc/x.toml";
        for kind in [
            RUNTIME_OPTIONS,
            RUNTIME_OPTIONS_NEW,
            "type.googleapis.com/runtimeoptions.v1.Options",
        ] {
            let request = Request::parse(&any(kind, options)).unwrap();
            assert_eq!(
                request.options.path.unwrap(),
                PathBuf::from("/etc/x.toml"),
                "{kind}"
            );
        }
        let nothing = Request::parse(&any(RUNTIME_OPTIONS, b"")).unwrap();
        assert_eq!(nothing.options, Options::default());
        let runc = RuncOptions {
            binary_name: "runc".into(),
            ..Default::default()
        };
        let runc = any(RUNC_OPTIONS, &runc.write_to_bytes().unwrap());
        assert_eq!(Request::parse(&runc).unwrap().options, Options::default());
    }

    #[test]
    fn keys_of_the_configuration_may_stand_among_the_options() {
        let options = |body: &str| {
            let mut message = vec![0x1a, body.len() as u8];
            message.extend_from_slice(body.as_bytes());
            let any = any(RUNTIME_OPTIONS_NEW, &message);
            Request::parse(&any).unwrap().options
        };
        let config = options("[machine]\nvcpus = 3\n").config().unwrap();
        assert_eq!(config.machine.vcpus, 3);
        let error = options("BinaryName = \"runc\"\n").config().unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("options of the runtime") && text.contains("BinaryName"),
            "{text}"
        );
    }

    #[test]
    fn bootstrap_parameters_are_json() {
        let input = br#"{"instanceId":"web","containerdTtrpcAddress":"unix:///run/c.ttrpc",
            "extensions":[{"value":{"@type":"types.containerd.io/runtimeoptions.v1.Options",
            "configPath":"/etc/x.toml"}},{"value":{"@type":"other","configPath":"no"}}]}"#;
        let request = Request::parse(input).unwrap();
        assert_eq!(request.options.path.unwrap(), PathBuf::from("/etc/x.toml"));
        assert_eq!(request.bootstrap.unwrap().events, "unix:///run/c.ttrpc");
        let verbose = |level: &str| {
            let input = format!(r#"{{"logLevel":{level}}}"#);
            Request::parse(input.as_bytes())
                .unwrap()
                .bootstrap
                .unwrap()
                .debug
        };
        assert!(verbose("\"LOG_LEVEL_DEBUG\"") && verbose("-5"));
        assert!(!verbose("\"LOG_LEVEL_WARN\"") && !verbose("0"));
        let body = br#"{"extensions":[{"value":{"@type":"x","configBody":"W21d"}}]}"#;
        let error = format!("{:#}", Request::parse(body).unwrap_err());
        assert!(error.contains("ConfigPath"), "{error}");
        let bare = Request::parse(b"{}").unwrap();
        assert_eq!(
            (bare.options, bare.bootstrap),
            (Options::default(), Some(Bootstrap::default()))
        );
    }

    #[test]
    fn others_are_refused() {
        for (input, text) in [
            (any("other.Options", b""), "\"other.Options\" is unknown"),
            (any(RUNTIME_OPTIONS, b"\x12\x06x.toml"), "not absolute"),
            (any(RUNTIME_OPTIONS, b"\x12\x7f"), RUNTIME_OPTIONS),
            (b"\x0a".to_vec(), "options of the runtime"),
            (b"{".to_vec(), "bootstrap parameters"),
        ] {
            let error = format!("{:#}", Request::parse(&input).unwrap_err());
            assert!(error.contains(text), "{error}");
        }
    }
}
