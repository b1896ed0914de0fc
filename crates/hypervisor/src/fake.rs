//! A hypervisor without machines, for tests.
