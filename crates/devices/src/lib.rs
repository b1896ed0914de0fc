//! The device process of a sandbox.
pub mod vsock;
