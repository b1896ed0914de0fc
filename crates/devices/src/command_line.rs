//! The options on the command line of the hidden verb `devices`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use casemate_config::CachePolicy;

use crate::options::{CommandLine, Inodes, Options, Settings, SyscallPolicy};
use crate::vsock::limits::Limits;

/// A command line that [`CommandLine::from_args`] cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// An option this verb does not have.
    #[error("unknown option {0:?}")]
    Unknown(OsString),
    /// An option without a value.
    #[error("{0}: value missing")]
    NoValue(&'static str),
    /// An option with a value it does not take.
    #[error("{option}: invalid value {value:?}")]
    Invalid {
        /// The option.
        option: &'static str,
        /// What stood there.
        value: OsString,
    },
    /// An option that must be there.
    #[error("{0}: missing")]
    Missing(&'static str),
}

const SHARE: &str = "--share";
const VSOCK_DIR: &str = "--vsock-dir";
const FS_FD: &str = "--fs-fd";
const VSOCK_FD: &str = "--vsock-fd";
const HYBRID_FD: &str = "--hybrid-fd";
const READY_FD: &str = "--ready-fd";
const GUEST_CID: &str = "--guest-cid";
const CACHE: &str = "--cache";
const INODES: &str = "--inodes";
const SYSCALLS: &str = "--syscalls";
const CONNECTIONS: &str = "--connections";
const PENDING: &str = "--pending";
const WINDOW: &str = "--window";
const MEMORY: &str = "--memory";
const PATIENCE_MS: &str = "--patience-ms";

const NAMES: [&str; 15] = [
    SHARE,
    VSOCK_DIR,
    FS_FD,
    VSOCK_FD,
    HYBRID_FD,
    READY_FD,
    GUEST_CID,
    CACHE,
    INODES,
    SYSCALLS,
    CONNECTIONS,
    PENDING,
    WINDOW,
    MEMORY,
    PATIENCE_MS,
];

/// The words an option takes.
type Words<T> = &'static [(&'static str, T)];

const CACHE_WORDS: Words<CachePolicy> = &[
    ("auto", CachePolicy::Auto),
    ("always", CachePolicy::Always),
    ("never", CachePolicy::Never),
];
const INODES_WORDS: Words<Inodes> = &[
    ("descriptors", Inodes::Descriptors),
    ("handles", Inodes::Handles),
];
const SYSCALLS_WORDS: Words<SyscallPolicy> = &[
    ("enforce", SyscallPolicy::Enforce),
    ("log", SyscallPolicy::Log),
];

impl CommandLine {
    /// What stands behind the verb.
    pub fn to_args(&self) -> Vec<OsString> {
        let Settings {
            inodes,
            syscalls,
            vsock,
        } = self.settings;
        let mut args: Vec<OsString> = vec![
            SHARE.into(),
            self.share.clone().into(),
            VSOCK_DIR.into(),
            self.vsock_dir.clone().into(),
        ];
        let mut push = |option: &str, value: String| {
            args.extend([OsString::from(option), value.into()]);
        };
        push(FS_FD, self.fs_listener.to_string());
        push(VSOCK_FD, self.vsock_listener.to_string());
        push(HYBRID_FD, self.hybrid_listener.to_string());
        if let Some(ready) = self.ready {
            push(READY_FD, ready.to_string());
        }
        push(GUEST_CID, self.guest_cid.to_string());
        push(CACHE, word(CACHE_WORDS, self.cache));
        push(INODES, word(INODES_WORDS, inodes));
        push(SYSCALLS, word(SYSCALLS_WORDS, syscalls));
        push(CONNECTIONS, vsock.connections.to_string());
        push(PENDING, vsock.pending.to_string());
        push(WINDOW, vsock.window.to_string());
        push(MEMORY, vsock.memory.to_string());
        push(PATIENCE_MS, vsock.patience.as_millis().to_string());
        args
    }

    /// Reads what [`CommandLine::to_args`] wrote.
    ///
    /// # Errors
    /// Unknown, incomplete and missing options, values out of range.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, UsageError> {
        let args = Args::collect(args)?;
        let default = Settings::default();
        let vsock = Limits {
            connections: args
                .number_up_to(CONNECTIONS, Limits::CONNECTIONS_MAX)?
                .unwrap_or(default.vsock.connections),
            pending: args.number(PENDING)?.unwrap_or(default.vsock.pending),
            window: args.number(WINDOW)?.unwrap_or(default.vsock.window),
            memory: args.number(MEMORY)?.unwrap_or(default.vsock.memory),
            patience: args
                .number(PATIENCE_MS)?
                .map_or(default.vsock.patience, Duration::from_millis),
        };
        Ok(CommandLine {
            share: args.value(SHARE).ok_or(UsageError::Missing(SHARE))?.into(),
            vsock_dir: args
                .value(VSOCK_DIR)
                .ok_or(UsageError::Missing(VSOCK_DIR))?
                .into(),
            fs_listener: args.fd(FS_FD)?.ok_or(UsageError::Missing(FS_FD))?,
            vsock_listener: args.fd(VSOCK_FD)?.ok_or(UsageError::Missing(VSOCK_FD))?,
            hybrid_listener: args.fd(HYBRID_FD)?.ok_or(UsageError::Missing(HYBRID_FD))?,
            ready: args.fd(READY_FD)?,
            guest_cid: args
                .number(GUEST_CID)?
                .ok_or(UsageError::Missing(GUEST_CID))?,
            cache: args.word(CACHE, CACHE_WORDS)?.unwrap_or(CachePolicy::Auto),
            settings: Settings {
                inodes: args.word(INODES, INODES_WORDS)?.unwrap_or(default.inodes),
                syscalls: args
                    .word(SYSCALLS, SYSCALLS_WORDS)?
                    .unwrap_or(default.syscalls),
                vsock,
            },
        })
    }

    /// Takes over the descriptors the monitor put at these numbers.
    pub(crate) fn adopt(self) -> io::Result<Options> {
        use casemate_linux::descriptor::inherited;
        Ok(Options {
            share: self.share,
            vsock_dir: self.vsock_dir,
            fs_listener: inherited(self.fs_listener)?,
            vsock_listener: inherited(self.vsock_listener)?,
            hybrid_listener: inherited(self.hybrid_listener)?,
            ready: self.ready.map(inherited).transpose()?,
            guest_cid: self.guest_cid,
            cache: self.cache,
            settings: self.settings,
        })
    }
}

fn word<T: Copy + PartialEq>(words: Words<T>, value: T) -> String {
    let word = words.iter().find(|(_, known)| *known == value);
    word.expect("every value has its word").0.to_owned()
}

/// Pairs of option and value; the last one of a name counts.
struct Args(Vec<(&'static str, OsString)>);

impl Args {
    fn collect(args: impl IntoIterator<Item = OsString>) -> Result<Args, UsageError> {
        let mut args = args.into_iter();
        let mut pairs = Vec::new();
        while let Some(arg) = args.next() {
            let Some(name) = NAMES.into_iter().find(|name| OsStr::new(name) == arg) else {
                return Err(UsageError::Unknown(arg));
            };
            pairs.push((name, args.next().ok_or(UsageError::NoValue(name))?));
        }
        Ok(Args(pairs))
    }

    fn value(&self, option: &str) -> Option<&OsStr> {
        let pair = self.0.iter().rev().find(|(name, _)| *name == option)?;
        Some(&pair.1)
    }

    fn parse<T>(
        &self,
        option: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, UsageError> {
        let Some(value) = self.value(option) else {
            return Ok(None);
        };
        match value.to_str().and_then(parse) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(UsageError::Invalid {
                option,
                value: value.to_owned(),
            }),
        }
    }

    fn number<T: std::str::FromStr>(&self, option: &'static str) -> Result<Option<T>, UsageError> {
        self.parse(option, |value| value.parse().ok())
    }

    fn number_up_to(&self, option: &'static str, max: u16) -> Result<Option<u16>, UsageError> {
        self.parse(option, |value| {
            value.parse().ok().filter(|number| *number <= max)
        })
    }

    /// 0, 1 and 2 are the standard streams.
    fn fd(&self, option: &'static str) -> Result<Option<RawFd>, UsageError> {
        self.parse(option, |value| value.parse().ok().filter(|fd| *fd > 2))
    }

    fn word<T: Copy>(
        &self,
        option: &'static str,
        words: Words<T>,
    ) -> Result<Option<T>, UsageError> {
        self.parse(option, |value| {
            words
                .iter()
                .find(|(word, _)| *word == value)
                .map(|(_, meaning)| *meaning)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn path() -> impl Strategy<Value = PathBuf> {
        prop::collection::vec(1u8.., 1..40).prop_map(|bytes| OsString::from_vec(bytes).into())
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (
            0..=Limits::CONNECTIONS_MAX,
            any::<u16>(),
            any::<u32>(),
            any::<u64>(),
            any::<u32>(),
        )
            .prop_map(|(connections, pending, window, memory, patience)| Limits {
                connections,
                pending,
                window,
                memory,
                patience: Duration::from_millis(patience.into()),
            })
    }

    prop_compose! {
        fn command_line()(
            share in path(),
            vsock_dir in path(),
            fds in (3..RawFd::MAX, 3..RawFd::MAX, 3..RawFd::MAX, prop::option::of(3..RawFd::MAX)),
            guest_cid in any::<u64>(),
            cache in prop::sample::select(CACHE_WORDS),
            inodes in prop::sample::select(INODES_WORDS),
            syscalls in prop::sample::select(SYSCALLS_WORDS),
            vsock in limits(),
        ) -> CommandLine {
            CommandLine {
                share,
                vsock_dir,
                fs_listener: fds.0,
                vsock_listener: fds.1,
                hybrid_listener: fds.2,
                ready: fds.3,
                guest_cid,
                cache: cache.1,
                settings: Settings { inodes: inodes.1, syscalls: syscalls.1, vsock },
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(line in command_line()) {
            prop_assert_eq!(CommandLine::from_args(line.to_args()), Ok(line));
        }
    }

    fn shortest() -> Vec<OsString> {
        [
            "--share",
            "/s",
            "--vsock-dir",
            "/v",
            "--fs-fd",
            "3",
            "--vsock-fd",
            "4",
            "--hybrid-fd",
            "5",
            "--guest-cid",
            "7",
        ]
        .map(OsString::from)
        .to_vec()
    }

    #[test]
    fn the_rest_has_defaults() {
        let line = CommandLine::from_args(shortest()).unwrap();
        assert_eq!(line.settings, Settings::default());
        assert_eq!(line.cache, CachePolicy::Auto);
        assert_eq!(line.ready, None);
    }

    #[test]
    fn mistakes_are_named() {
        for (more, error) in [
            (
                &["--sharee", "x"][..],
                UsageError::Unknown("--sharee".into()),
            ),
            (&["--cache"], UsageError::NoValue(CACHE)),
            (
                &["--cache", "some"],
                UsageError::Invalid {
                    option: CACHE,
                    value: "some".into(),
                },
            ),
            (
                &["--fs-fd", "2"],
                UsageError::Invalid {
                    option: FS_FD,
                    value: "2".into(),
                },
            ),
            (
                &["--connections", "65535"],
                UsageError::Invalid {
                    option: CONNECTIONS,
                    value: "65535".into(),
                },
            ),
        ] {
            let args = shortest()
                .into_iter()
                .chain(more.iter().map(OsString::from));
            assert_eq!(CommandLine::from_args(args), Err(error));
        }
        assert_eq!(
            CommandLine::from_args(shortest().into_iter().skip(2)),
            Err(UsageError::Missing(SHARE))
        );
    }
}
