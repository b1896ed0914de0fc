//! The socket device against a hostile guest. The entry is the tests' own.
#![no_main]

#[allow(dead_code, reason = "the tests use the rest")]
mod support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzzing::vsock(bytes));
