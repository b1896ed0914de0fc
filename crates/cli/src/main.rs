//! `casemate`: the OCI runtime command line, containerd's shim, and the
//! processes that a sandbox is made of on the host (`monitor`, `stand-in`,
//! `devices`), in one binary.
//!
//! Each verb is a file in [`commands`]. What all of them share: the global
//! [`arguments`], the [`log`], the [`client`] of a sandbox's monitor and the
//! [`launch`] of a new one.

#![forbid(unsafe_code)]
#![allow(
    unreachable_pub,
    reason = "in a binary, pub means: shared between its files"
)]

mod arguments;
mod client;
mod commands;
mod foreground;
mod launch;
mod log;

use std::process::ExitCode;

use arguments::{Arguments, Verb};
use casemate_shim::containerd;
use clap::Parser;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if containerd::is_called(words.next().as_ref()) {
        return commands::containerd::run(words);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no failure; everything else is 1, as runc's.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    if let Err(error) = log::open(&arguments.global, &arguments.verb) {
        eprintln!("casemate: {}", log::one_line(&error));
        return ExitCode::FAILURE;
    }
    let Arguments { global, verb, .. } = arguments;
    let result = match verb {
        Verb::Create(arguments) => commands::create::run(&global, &arguments),
        Verb::Start(arguments) => commands::start::run(&global, &arguments),
        Verb::Run(arguments) => commands::run::run(&global, &arguments),
        Verb::State(arguments) => commands::state::run(&global, &arguments),
        Verb::Exec(arguments) => commands::exec::run(&global, &arguments),
        Verb::Pause(arguments) => commands::pause::run(&global, &arguments),
        Verb::Resume(arguments) => commands::resume::run(&global, &arguments),
        Verb::Update(arguments) => commands::update::run(&global, &arguments),
        Verb::Ps(arguments) => commands::ps::run(&global, &arguments),
        Verb::Events(arguments) => commands::events::run(&global, &arguments),
        Verb::Checkpoint(_) => commands::checkpoint::run("checkpoint"),
        Verb::Restore(_) => commands::checkpoint::run("restore"),
        Verb::Kill(arguments) => commands::kill::run(&global, &arguments),
        Verb::Delete(arguments) => commands::delete::run(&global, &arguments),
        Verb::List(arguments) => commands::list::run(&global, &arguments),
        Verb::Spec(arguments) => commands::spec::run(&arguments),
        Verb::Features => commands::features::run(),
        Verb::Check => commands::check::run(&global),
        Verb::Timeline(arguments) => commands::timeline::run(&global, &arguments),
        Verb::Template(arguments) => commands::template::run(&global, &arguments.verb),
        Verb::TemplateMaker => commands::template_maker::run(),
        Verb::Memory(arguments) => commands::memory::run(&global, &arguments),
        Verb::Bench(options) => commands::bench::run(&global, &options),
        Verb::Install(arguments) => commands::install::run(&arguments),
        Verb::Monitor(arguments) => commands::monitor::run(arguments),
        Verb::StandIn(arguments) => commands::stand_in::run(&arguments),
        Verb::Devices(arguments) => commands::devices::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            log::failure(&global, &error);
            ExitCode::FAILURE
        }
    }
}
