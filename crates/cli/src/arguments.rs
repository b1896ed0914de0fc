//! The command line: every verb and flag in one place, as runc has them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where containers are recorded unless `--root` says otherwise.
pub const DEFAULT_ROOT: &str = "/run/casemate/oci";

/// As runc prints it; clients parse "NAME version X" and the "spec:" line.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.1");

/// Secure container runtime: every container in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(
    name = "casemate",
    version = VERSION,
    disable_version_flag = true,
    max_term_width = 100
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: (),
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags before the verb.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory for the state of containers
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub root: PathBuf,
    /// File for the log, instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log everything
    #[arg(long)]
    pub debug: bool,
    /// Configuration file, instead of /etc/casemate/config.toml and its drop-ins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Use the systemd cgroup driver (not supported: refused where a cgroup is asked for)
    #[arg(long)]
    pub systemd_cgroup: bool,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, as runc writes it.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a container; its process waits for `start`
    Create(Create),
    /// Start the process of a created container
    Start(Container),
    /// Create and start a container, wait for its end and delete it
    Run(Run),
    /// Print the state of a container
    State(Container),
    /// Send a signal to a container
    Kill(Kill),
    /// Delete a container
    Delete(Delete),
    /// List containers
    #[command(alias = "ls")]
    List(List),
    /// Write a config.json to start from
    Spec(Spec),
    /// Print what this runtime can do, as JSON
    Features,
    /// Say whether and how well this host can isolate containers
    Check,
    /// Show where the time of a container's start went
    Timeline(Timeline),
    /// Serve one sandbox
    #[command(hide = true)]
    Monitor(Monitor),
    /// Stand for a container's process on the host
    #[command(hide = true)]
    StandIn(StandIn),
    /// Serve a sandbox's file share and vsock
    #[command(hide = true, name = casemate_sandbox::DEVICES_VERB)]
    Devices(Devices),
}

/// A container by its id.
#[derive(Debug, Args)]
pub struct Container {
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Create {
    /// Directory of the OCI bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that gets the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File for the process id that stands for the container
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted: a container in a VM never changes its root by pivot on the host
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Accepted: the guest has no session keyring of the caller
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Number of extra descriptors for the container (only 0: they cannot enter a VM)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub create: Create,
    /// Return once the container runs
    #[arg(short, long)]
    pub detach: bool,
    /// Do not delete the container at its end
    #[arg(long)]
    pub keep: bool,
    /// Accepted: Casemate never becomes a subreaper
    #[arg(long)]
    pub no_subreaper: bool,
}

#[derive(Debug, Args)]
pub struct Kill {
    /// To every process of the container
    #[arg(short, long)]
    pub all: bool,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

#[derive(Debug, Args)]
pub struct Delete {
    /// Also when it runs, and no error when there is none
    #[arg(short, long)]
    pub force: bool,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct List {
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub format: Format,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
pub struct Spec {
    /// Directory of the OCI bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
}

#[derive(Debug, Args)]
pub struct Timeline {
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub format: Format,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// What the command line tells the monitor. The resolved configuration is on
/// descriptor 3 as JSON, descriptor 4 takes the news that it serves.
#[derive(Debug, Args)]
pub struct Monitor {
    #[arg(long)]
    pub id: String,
    #[arg(long)]
    pub directory: PathBuf,
    #[arg(long)]
    pub netns: PathBuf,
    #[arg(long)]
    pub hostname: String,
    #[arg(long)]
    pub begun_ns: u64,
}

/// Descriptor 3 is the control socket, 4 takes the news that all is set up.
#[derive(Debug, Args)]
pub struct StandIn {
    #[arg(long)]
    pub id: String,
    #[arg(long)]
    pub netns: Option<PathBuf>,
    #[arg(long)]
    pub terminal: bool,
}

/// Read by the crate that does the work.
#[derive(Debug, Args)]
pub struct Devices {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<std::ffi::OsString>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_forms_that_clients_use_are_understood() {
        let line = "casemate --root /r --log /l --log-format=json --debug create \
                    --bundle /b --pid-file /p --console-socket /c --no-new-keyring web";
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(arguments.global.log_format, LogFormat::Json);
        let Verb::Create(create) = arguments.verb else {
            panic!("another verb")
        };
        assert_eq!(
            (create.id.as_str(), create.bundle.to_str()),
            ("web", Some("/b"))
        );

        for line in [
            "casemate kill web",
            "casemate kill --all web 9",
            "casemate kill web KILL",
            "casemate delete --force web",
            "casemate list --format json -q",
            "casemate run -d -b /b web",
            "casemate --systemd-cgroup --log-format json start web",
        ] {
            assert!(
                Arguments::try_parse_from(line.split_whitespace()).is_ok(),
                "{line}"
            );
        }
    }
}
