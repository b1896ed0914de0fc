//! Tests of the split as a whole; those of single conversions are beside them.

mod arbitrary;
mod fake_host;
mod golden;
mod pause;
mod refusals;
mod seccomp;
