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
    /// The container's cgroup is a scope of systemd: linux.cgroupsPath is "slice:prefix:name"
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
    /// Run one more process in a container
    Exec(Box<Exec>),
    /// Send a signal to a container
    Kill(Kill),
    /// Freeze every process of a container
    Pause(Container),
    /// Let a paused container go on
    Resume(Container),
    /// Change the limits of a container
    Update(Box<Update>),
    /// List the processes of a container
    Ps(Ps),
    /// Print what a container uses, and when it runs out of memory
    Events(Events),
    /// Delete a container
    Delete(Delete),
    /// List containers
    #[command(alias = "ls")]
    List(List),
    /// Write a config.json to start from
    Spec(Spec),
    /// Print what this runtime can do, as JSON
    Features,
    /// Not supported: says what to use
    Checkpoint(Anything),
    /// Not supported: says what to use
    Restore(Anything),
    /// Say whether and how well this host can isolate containers
    Check,
    /// Show where the time of a container's start went
    Timeline(Timeline),
    /// Make, list and remove templates: saved machines from which sandboxes begin
    Template(Template),
    /// Show what sandboxes take of the host's memory, by process and by kind
    Memory(Memory),
    /// Measure this runtime beside others and a bare virtual machine
    Bench(Box<casemate_bench::Options>),
    /// Register the runtime with a client
    Install(Install),
    /// Serve one sandbox
    #[command(hide = true)]
    Monitor(Monitor),
    /// Make a template for the next start
    #[command(hide = true, name = casemate_sandbox::template::background::VERB)]
    TemplateMaker,
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
pub struct Exec {
    /// Unix socket that gets the master of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File for the process id that stands for the process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Return once the process runs
    #[arg(short, long)]
    pub detach: bool,
    /// Also when the container is paused; the process runs when it is resumed
    #[arg(long)]
    pub ignore_paused: bool,
    /// File with the process (OCI "process" as JSON), in place of what follows
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["cwd", "env", "user", "additional_gids", "cap", "no_new_privs", "command"])]
    pub process: Option<PathBuf>,
    /// With a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// One more variable of the environment (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// User id, and group id
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// One more group (repeatable)
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// One more capability (repeatable)
    #[arg(short, long, value_name = "CAPABILITY")]
    pub cap: Vec<String>,
    /// Without new privileges through exec
    #[arg(long)]
    pub no_new_privs: bool,
    /// Accepted: the guest has no SELinux
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Accepted: the guest has no AppArmor
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Number of extra descriptors for the process (only 0: they cannot enter a VM)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
    /// The program and its arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Update {
    /// File with the new limits (OCI "resources" as JSON), "-" for standard input
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Period of the CPU quota, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// CPU time relative to others
    #[arg(long, value_name = "N", visible_alias = "cpu-shares")]
    pub cpu_share: Option<u64>,
    /// Run only when nothing else does (1), or as usual (0)
    #[arg(long, value_name = "0|1")]
    pub cpu_idle: Option<i64>,
    /// Memory, in bytes or with a suffix (k, m, g); -1 for no limit
    #[arg(short, long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Memory that is protected, in bytes or with a suffix
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// Number of processes; -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// How to print: a table of the guest's processes, or the process ids on
    /// the host that stand for the container's own
    #[arg(short, long, default_value = "table")]
    pub format: Format,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Accepted: the guest has no ps whose options these could be
    #[arg(
        value_name = "PS OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        hide = true
    )]
    pub options: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Print once and end
    #[arg(long)]
    pub stats: bool,
    /// Time between two prints, such as 5s or 500ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub interval: std::time::Duration,
    /// Id of the container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Arguments of a verb that is refused, whatever they are.
#[derive(Debug, Args)]
pub struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub arguments: Vec<std::ffi::OsString>,
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

#[derive(Debug, Args)]
pub struct Template {
    #[command(subcommand)]
    pub verb: TemplateVerb,
}

#[derive(Debug, Subcommand)]
pub enum TemplateVerb {
    /// Make the template of the configured machine now, unless it is there
    Create,
    /// List the templates, the one that was used last first
    #[command(alias = "ls")]
    List {
        /// How to print
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Read all of a template, compare it with what was made, and say what it is
    Show {
        /// How to print
        #[arg(short, long, default_value = "table")]
        format: Format,
        /// Key of the template, as `list` shows it
        #[arg(value_name = "KEY")]
        key: String,
    },
    /// Delete templates; machines that began from them do not mind
    #[command(alias = "rm")]
    Delete {
        /// Every template
        #[arg(long, conflicts_with = "keys")]
        all: bool,
        /// Keys of templates
        #[arg(value_name = "KEY", required_unless_present = "all")]
        keys: Vec<String>,
    },
    /// Delete what no machine can begin from any more, what killed makers have
    /// left, and what is beyond template.limit_mib
    Prune,
}

#[derive(Debug, Args)]
pub struct Memory {
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub format: Format,
    /// Id of a container whose sandbox is meant; without it, all sandboxes
    #[arg(value_name = "ID")]
    pub id: Option<String>,
}

#[derive(Debug, Args)]
pub struct Install {
    /// The client
    pub client: Client,
    /// Directory of the client's configuration, instead of /etc
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    pub etc: PathBuf,
    /// Directory of the link that containerd starts, in its PATH
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    pub bin: PathBuf,
    /// As the runtime of every container that names none
    #[arg(long)]
    pub default: bool,
    /// Take it back
    #[arg(long)]
    pub undo: bool,
    /// Only print what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Who can be told of the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Client {
    /// Podman: a drop-in of containers.conf.
    Podman,
    /// Docker: keys of daemon.json.
    Docker,
    /// containerd: tables of config.toml, and a link in PATH.
    Containerd,
    /// CRI-O: a drop-in of crio.conf.
    Crio,
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
    pub root: PathBuf,
    /// Absent: a stand-in makes it
    #[arg(long)]
    pub netns: Option<PathBuf>,
    #[arg(long)]
    pub hostname: String,
    #[arg(long)]
    pub cgroup: Option<String>,
    #[arg(long)]
    pub begun_ns: u64,
    /// When this process was made, on the same clock.
    #[arg(long)]
    pub spawned_ns: u64,
    /// containerd is the client, its socket is at descriptor 5
    #[arg(long, requires = "bundle")]
    pub containerd_namespace: Option<String>,
    /// Where it takes events
    #[arg(long)]
    pub containerd_events: Option<PathBuf>,
    /// Bundle of the first container
    #[arg(long)]
    pub bundle: Option<PathBuf>,
    /// containerd will describe it by its Sandbox API
    #[arg(long, requires = "bundle")]
    pub pod: bool,
    /// The least important event that is logged, unless --debug says otherwise
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Processors of the template's machine
    #[arg(long)]
    pub template_vcpus: u32,
    /// Memory of the template's machine
    #[arg(long)]
    pub template_memory_mib: u32,
    /// For the log
    #[arg(long, allow_hyphen_values = true)]
    pub warning: Vec<String>,
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
    /// Only shown to who lists the host's processes: what it stands for
    #[arg(last = true)]
    pub command: Vec<std::ffi::OsString>,
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
            "casemate exec --pid-file /p --process /f --detach web",
            "casemate exec --process /f --console-socket /c --detach --tty --pid-file /p web",
            "casemate exec -u 1:2 -e A=b web ls -l --all",
            "casemate ps --format json web",
            "casemate update --resources - web",
            "casemate update --resources=/f web",
            "casemate pause web",
            "casemate events --stats web",
            "casemate run -d -b /b web",
            "casemate --systemd-cgroup --log-format json start web",
            "casemate template create",
            "casemate template list --format json",
            "casemate template delete --all",
            "casemate template rm 0123456789abcdef 0123456789abcdee",
        ] {
            assert!(
                Arguments::try_parse_from(line.split_whitespace()).is_ok(),
                "{line}"
            );
        }
    }
}
