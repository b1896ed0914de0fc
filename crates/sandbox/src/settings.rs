//! What one sandbox is made with: the host's configuration, what annotations of
//! its first container change in it, and a machine of the size that its limits
//! ask for. Every front door asks here, before anything is touched.

use casemate_config::{AnnotationError, Config, Machine};
use casemate_hypervisor::Size;

use crate::size::{self, HostSize};
use crate::spec::HostSpec;

/// The configuration of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// With its machine's size.
    pub config: Config,
    /// How large the template is that its machine begins from: as the host's
    /// configuration says, and no larger than the machine.
    pub template: Size,
    /// What was asked for and has no effect, each in one line.
    pub warnings: Vec<String>,
}

/// Why a sandbox cannot be as its annotations ask.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An annotation that is wrong or not allowed.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),

    /// A machine that the host could not hold.
    #[error(
        "{key} = {asked} by annotation: this host has {has}; ask for less, or let a larger node \
         run it"
    )]
    TooLarge {
        /// The key of the configuration.
        key: &'static str,
        /// As the annotations say.
        asked: u32,
        /// Of the host.
        has: u64,
    },
}

impl Settings {
    /// Of a sandbox whose first container is `first`, on a host with this
    /// configuration and size.
    ///
    /// # Errors
    /// When an annotation cannot be followed.
    pub fn new(host: Config, first: &HostSpec, has: HostSize) -> Result<Self, Error> {
        let before = host.machine.clone();
        let (mut config, warnings) = host.with_annotations(&first.annotations)?;
        check_size(&before, &config.machine, has)?;
        config.machine = size::machine(&config.machine, first.sizing(), has);
        let [host, own] = [&before, &config.machine].map(size_of);
        let template = Size {
            vcpus: host.vcpus.min(own.vcpus),
            memory_mib: host.memory_mib.min(own.memory_mib),
        };
        Ok(Self {
            config,
            template,
            warnings,
        })
    }
}

/// How large such a machine is.
pub fn size_of(machine: &Machine) -> Size {
    Size {
        vcpus: machine.vcpus,
        memory_mib: machine.memory_mib,
    }
}

/// The size in the host's own configuration is its administrator's to answer for.
fn check_size(before: &Machine, after: &Machine, has: HostSize) -> Result<(), Error> {
    let processors = u64::from(has.processors);
    for (key, before, asked, has) in [
        ("machine.vcpus", before.vcpus, after.vcpus, processors),
        (
            "machine.memory_mib",
            before.memory_mib,
            after.memory_mib,
            has.memory_mib,
        ),
    ] {
        if asked != before && u64::from(asked) > has {
            return Err(Error::TooLarge { key, asked, has });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostSize = HostSize {
        processors: 4,
        memory_mib: 8192,
    };

    fn settings(json: &str, annotations: &[(&str, &str)]) -> Result<(u32, u32), String> {
        let pairs = annotations.iter();
        let first = HostSpec {
            annotations: pairs
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            resources: serde_json::from_str(json).unwrap(),
            ..HostSpec::fake()
        };
        let settings = Settings::new(Config::default(), &first, HOST);
        let machine = settings.map_err(|error| error.to_string())?.config.machine;
        Ok((machine.vcpus, machine.memory_mib))
    }

    #[test]
    fn annotations_stand_for_the_host_s_values_and_limits_size_the_machine() {
        let two = ("casemate.io/machine.vcpus", "2");
        let half = ("casemate.io/machine.memory_mib", "512");
        let none = "null";
        let limits = r#"{"cpu": {"quota": 300000}, "memory": {"limit": 67108864}}"#;
        assert_eq!(settings(none, &[]), Ok((1, 256)));
        assert_eq!(settings(none, &[two, half]), Ok((2, 512)));
        assert_eq!(settings(limits, &[]), Ok((3, 320)));
        assert_eq!(settings(limits, &[two, half]), Ok((3, 576)));
    }

    #[test]
    fn a_template_is_the_host_s_machine_or_a_smaller_one() {
        let template = |json: &str, memory: &str| {
            let key = "casemate.io/machine.memory_mib".to_owned();
            let mut host = Config::default();
            host.machine.vcpus = 2;
            let first = HostSpec {
                annotations: [(key, memory.to_owned())].into(),
                resources: serde_json::from_str(json).unwrap(),
                ..HostSpec::fake()
            };
            let Size { vcpus, memory_mib } = Settings::new(host, &first, HOST).unwrap().template;
            (vcpus, memory_mib)
        };
        assert_eq!(template("null", "256"), (2, 256));
        let limits = r#"{"cpu": {"quota": 300000}, "memory": {"limit": 67108864}}"#;
        assert_eq!(template(limits, "512"), (2, 256));
        assert_eq!(template(r#"{"cpu": {"quota": 50000}}"#, "128"), (1, 128));
    }

    #[test]
    fn a_machine_larger_than_the_host_is_refused() {
        for (key, value, expected) in [
            (
                "machine.vcpus",
                "5",
                "machine.vcpus = 5 by annotation: this host has 4;",
            ),
            (
                "machine.memory_mib",
                "8193",
                "machine.memory_mib = 8193 by annotation: this host has 8192;",
            ),
        ] {
            let error = settings("null", &[(&format!("casemate.io/{key}"), value)]);
            let error = error.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(
            settings("null", &[("casemate.io/machine.vcpus", "4")]),
            Ok((4, 256))
        );
    }

    #[test]
    fn a_pod_is_sized_by_its_own_limits() {
        let pod =
            serde_json::from_str(r#"{"cpu": {"quota": 200000}, "memory": {"limit": 1048576}}"#);
        let first = HostSpec {
            pod: pod.unwrap(),
            resources: serde_json::from_str(r#"{"cpu": {"shares": 2}}"#).unwrap(),
            ..HostSpec::fake()
        };
        let machine = Settings::new(Config::default(), &first, HOST)
            .unwrap()
            .config
            .machine;
        assert_eq!((machine.vcpus, machine.memory_mib), (2, 257));
        assert_eq!(first.memory_limit(), 0);
    }

    #[test]
    fn warnings_and_refusals_of_annotations_come_through() {
        let kata = "io.katacontainers.config.hypervisor.machine_type";
        let first = HostSpec {
            annotations: [(kata.to_owned(), "q35".to_owned())].into(),
            ..HostSpec::fake()
        };
        let settings = Settings::new(Config::default(), &first, HOST).unwrap();
        assert_eq!(settings.config, Config::default());
        assert_eq!(settings.warnings.len(), 1);
        let error = super::tests::settings("null", &[("casemate.io/log.level", "trace")]);
        assert!(error.unwrap_err().contains("log.level is for the host"));
    }
}
