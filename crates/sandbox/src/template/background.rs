//! A maker in the background: the process that makes a template for the next
//! start. It outlives the sandbox for which it came too late, and has nothing of
//! it: no descriptor, no mount, no terminal.

use std::{
    fs::File,
    io::{self, Seek},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
};

use casemate_config::Config;
use casemate_hypervisor::Size;
use casemate_linux::{
    descriptor,
    process::Child,
    program::{self, Start},
    reactor,
    view::View,
};

use super::store::{LOG, Store};

/// The hidden verb of the command line that is one.
pub const VERB: &str = "template-maker";

/// Where it finds its configuration, and the view it lives in.
pub const CONFIG_FD: i32 = 3;
/// The two descriptors of the view.
pub const VIEW_FDS: [i32; 2] = [4, 5];

/// What a sandbox has to know to use templates.
#[derive(Debug, Clone)]
pub struct Templates {
    /// How large their machines are, and how large a sandbox's begins.
    pub size: Size,
    /// The host's files as they were before this process had a mount namespace of
    /// its own: whoever stays there keeps nothing of the sandbox alive.
    pub view: Arc<View>,
}

impl Templates {
    /// Starts a maker for machines of `config`, and lets it be.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub(crate) fn make_in_background(&self, config: &Config) -> io::Result<()> {
        let mut config = config.clone();
        config.machine.vcpus = self.size.vcpus;
        config.machine.memory_mib = self.size.memory_mib;
        let log = Store::at(&config.template.directory).root().join(LOG);
        let file = as_file(&config)?;
        let [namespace, root] = self.view.descriptors();
        let started = Start {
            descriptors: &[file.as_fd(), namespace, root],
            new_session: true,
            ..Start::default()
        };
        let line = command_line(&log);
        let child = program::start("/proc/self/exe", &line, started)?;
        tokio::task::spawn_local(reap(child));
        Ok(())
    }
}

fn command_line(log: &Path) -> Vec<String> {
    let log = log.to_string_lossy().into_owned();
    ["casemate", "--log", &log, VERB]
        .map(str::to_owned)
        .to_vec()
}

/// Its end says nothing: the store has the template, or the reason.
async fn reap(child: Child) {
    let ended = child.pidfd().try_clone_to_owned();
    if let Ok(ended) = ended.and_then(reactor::register_readable)
        && ended.readable().await.is_ok()
    {
        let _ = child.wait();
    }
}

/// The configuration as an anonymous file.
fn as_file(config: &Config) -> io::Result<File> {
    let mut file = descriptor::memory_file("casemate-config")?;
    serde_json::to_writer(&file, config)?;
    file.rewind()?;
    Ok(file)
}
