//! The lab: a host with KVM, devices to pass through and systemd, emulated on any machine.
//! `docs/lab.md` says what it is for and how to add to it.

mod channel;
mod image;
mod initrd;
mod machine;
mod payload;
mod recipe;
mod session;
mod test;

use std::time::Duration;

use anyhow::{Result, bail};

use channel::{Channel, End};
use machine::{Life, Settings};
use session::Lab;

/// Options of `cargo xtask lab`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Boot a lab and leave it running
    Up,
    /// Run a line of the shell in the lab that is up, or in one that is booted for it
    Run {
        /// Seconds after which what runs has failed
        #[arg(long, default_value_t = 300)]
        limit: u64,
        /// The line, all words of it
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        line: Vec<String>,
    },
    /// Open a shell in the lab that is up, or in one that is booted for it
    Shell,
    /// Boot a lab, prove what tests/lab.txt and the list of facts demand, and end it
    Test {
        /// Minutes for all of it, boots included; a busy machine needs more
        #[arg(long, default_value_t = 15, value_name = "MINUTES")]
        limit: u64,
    },
    /// End the lab that is up
    Down,
}

/// Does one thing with a lab.
pub(crate) fn run(options: &Options) -> Result<()> {
    let settings = &options.settings;
    match &options.action {
        Action::Up => up(settings),
        Action::Run { limit, line } => with_a_lab(settings, |channel| {
            let limit = Duration::from_secs(*limit);
            match channel.run(&line.join(" "), limit)? {
                End::Code(0) => Ok(()),
                End::Code(code) => bail!("exit code {code}"),
                End::Late => bail!("it took longer than {} s", limit.as_secs()),
                End::Lost => bail!(
                    "the lab does not answer any more\nhint: its console is in {}",
                    session::folder().join("console.log").display()
                ),
            }
        }),
        Action::Shell => with_a_lab(settings, Channel::shell),
        Action::Test { limit } => test::run(settings, Duration::from_secs(limit * 60)),
        Action::Down => session::down(),
    }
}

fn up(settings: &Settings) -> Result<()> {
    let lab = Lab::boot(settings, Life::Detached);
    if lab.is_err() {
        session::down()?;
    }
    lab?;
    println!("lab: up; cargo xtask lab run CMD, shell, down");
    Ok(())
}

fn with_a_lab(settings: &Settings, work: impl FnOnce(&Channel) -> Result<()>) -> Result<()> {
    match Lab::running()? {
        Some(channel) => work(&channel),
        None => work(Lab::boot(settings, Life::Attached)?.channel()),
    }
}
