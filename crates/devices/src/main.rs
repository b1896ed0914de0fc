//! The device process alone, for tests and for finding missing system calls;
//! `casemate devices` is the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    match casemate_devices::main(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err}");
            ExitCode::FAILURE
        }
    }
}
