//! The system calls that serving files and sockets takes.
//!
//! Found by tracing real work in a guest: package tools, git, compilers, tar,
//! databases, extended attributes, locks and other users' files on the share;
//! connections, half-closes and stalls on the sockets. A call that is not on
//! the list ends the process.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::{Error, failed};
use crate::options::{Inodes, SyscallPolicy};

/// Reading and writing files.
const FILE_CONTENT: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_flock,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
];

/// Names, directories, attributes.
const FILE_TREE: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fgetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    libc::SYS_fchdir,
    libc::SYS_umask,
];

/// Acting for a user of the guest.
const CREDENTIALS: &[libc::c_long] = &[
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_capget,
    libc::SYS_capset,
];

/// Sockets and events; `socket`, `ioctl` and more have conditions, see below.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// What the language and the C library do by themselves.
const RUNTIME: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Only with file handles: these reach any file of a file system.
const HANDLES: &[libc::c_long] = &[libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at];

/// Restricts this thread and all it starts.
pub(super) fn restrict(inodes: Inodes, policy: SyscallPolicy) -> Result<(), Error> {
    let install = |rules, otherwise, matched| {
        let program = compile(rules, otherwise, matched)?;
        apply_filter(&program).map_err(io::Error::other)
    };
    // clone3(2) hides its flags in memory, where no filter can look. The C
    // library falls back to clone(2) if it seems not to exist.
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    install(clone3, SeccompAction::Allow, absent).map_err(failed("hide clone3"))?;
    let forbidden = match policy {
        SyscallPolicy::Enforce => SeccompAction::KillProcess,
        SyscallPolicy::Log => SeccompAction::Log,
    };
    let rules = rules(inodes).map_err(failed("make the system call filter"))?;
    install(rules, forbidden, SeccompAction::Allow).map_err(failed("filter system calls"))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    SeccompFilter::new(rules, otherwise, matched, arch)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

fn rules(inodes: Inodes) -> io::Result<Rules> {
    let mut free = vec![FILE_CONTENT, FILE_TREE, CREDENTIALS, SOCKETS, RUNTIME];
    if inodes == Inodes::Handles {
        free.push(HANDLES);
    }
    let mut rules: Rules = free
        .into_iter()
        .flatten()
        .map(|call| (*call, Vec::new()))
        .collect();
    // Refused by clone3's own filter.
    rules.insert(libc::SYS_clone3, Vec::new());
    let mut when = |call, alternatives: &[(u8, SeccompCmpOp, u64)]| -> io::Result<()> {
        let alternatives = alternatives.iter().map(|(argument, op, value)| {
            let condition =
                SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op.clone(), *value)?;
            SeccompRule::new(vec![condition])
        });
        let alternatives: Result<_, _> = alternatives.collect();
        rules.insert(call, alternatives.map_err(io::Error::other)?);
        Ok(())
    };
    use SeccompCmpOp::{Eq, MaskedEq};
    let executable = libc::PROT_EXEC as u64;
    when(libc::SYS_mmap, &[(2, MaskedEq(executable), 0)])?;
    when(libc::SYS_mprotect, &[(2, MaskedEq(executable), 0)])?;
    let thread = libc::CLONE_THREAD as u64;
    when(libc::SYS_clone, &[(0, MaskedEq(thread), thread)])?;
    // The vsock thread has a working directory of its own.
    when(libc::SYS_unshare, &[(0, Eq, libc::CLONE_FS as u64)])?;
    when(libc::SYS_socket, &[(0, Eq, libc::AF_UNIX as u64)])?;
    when(libc::SYS_ioctl, &[(1, Eq, libc::FIONBIO)])?;
    when(
        libc::SYS_prctl,
        &[
            (0, Eq, libc::PR_SET_NAME as u64),
            // libcap-ng looks at all sets before it changes one.
            (0, Eq, libc::PR_CAPBSET_READ as u64),
            (0, Eq, libc::PR_CAP_AMBIENT as u64),
        ],
    )?;
    Ok(rules)
}
