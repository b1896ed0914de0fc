//! Real containers made by the real agent, without a VM: it runs as PID 1 of
//! fresh namespaces and is talked to over unix sockets. Needs root, busybox
//! (static), cgroup v2 mounted somewhere; says so and does nothing otherwise.

mod guest;
mod identity;
mod life;
mod names;
mod namespaces;
mod network;
mod pause;
mod process;
mod refusal;
mod rootfs;
mod streams;
mod terminal;
