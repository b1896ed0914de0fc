//! The socket device against a hostile guest. The entry is the tests' own.
#![no_main]

#[allow(dead_code, reason = "the tests use the rest")]
mod support {
    #[path = "../../../crates/devices/tests/support/fuzzing.rs"]
    pub mod fuzzing;
    #[path = "../../../crates/devices/tests/support/guest.rs"]
    pub mod guest;
    #[path = "../../../crates/devices/tests/support/harness.rs"]
    pub mod harness;
    #[path = "../../../crates/devices/tests/support/ring.rs"]
    pub mod ring;
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzzing::vsock(bytes));
