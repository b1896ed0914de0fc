//! The fuzzer's entry with random bytes, so that it stays alive and finds the
//! shallow bugs on every run of the tests.

mod support;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn arbitrary_bytes_break_no_promise(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        support::fuzzing::vsock(&bytes);
    }
}
