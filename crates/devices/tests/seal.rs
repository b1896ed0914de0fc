//! What a sealed process can no longer do. Each attempt is a child that seals
//! itself first. Needs root.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use casemate_devices::jail::seal;
use casemate_devices::{Inodes, SyscallPolicy};
use nix::fcntl::renameat;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// How a child ends.
#[derive(Debug, PartialEq, Eq)]
enum Exit {
    Code(i32),
    Signal(Signal),
}

const KILLED: Exit = Exit::Signal(Signal::SIGSYS);

fn sealed(policy: SyscallPolicy, inodes: Inodes, attempt: impl FnOnce() -> i32) -> Exit {
    // SAFETY: fork(3) of the C library leaves a usable allocator behind, and
    // the child takes no lock of another thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let body = std::panic::AssertUnwindSafe(|| {
                seal(inodes, policy).expect("seal");
                attempt()
            });
            let code = std::panic::catch_unwind(body).unwrap_or(101);
            // SAFETY: ends the child without running the tests' own cleanup.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => Exit::Code(code),
            WaitStatus::Signaled(_, signal, _) => Exit::Signal(signal),
            other => panic!("{other:?}"),
        },
    }
}

fn enforced(attempt: impl FnOnce() -> i32) -> Exit {
    sealed(SyscallPolicy::Enforce, Inodes::Descriptors, attempt)
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

macro_rules! ends_the_process {
    ($($name:ident: $attempt:expr;)+) => {$(
        #[test]
        fn $name() {
            // SAFETY: plain system calls with valid arguments.
            assert_eq!(enforced(|| { let _ = unsafe { $attempt }; 0 }), KILLED);
        }
    )+};
}

ends_the_process! {
    executing_a_program: libc::execve(c"/bin/true".as_ptr(), [std::ptr::null()].as_ptr(), [std::ptr::null()].as_ptr());
    forking: libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    internet_sockets: libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    netlink_sockets: libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0);
    vsock_sockets: libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0);
    executable_memory: libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
    mounting: libc::mount(c"x".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null());
    new_user_namespaces: libc::unshare(libc::CLONE_NEWUSER);
    tracing: libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
    signalling: libc::kill(1, 0);
    changing_the_root: libc::chroot(c"/".as_ptr());
    files_by_handle: libc::syscall(libc::SYS_open_by_handle_at, -1, 0, 0);
    io_uring: libc::syscall(libc::SYS_io_uring_setup, 1, 0);
    bpf: libc::syscall(libc::SYS_bpf, 0, 0, 0);
    terminal_input: libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr());
}

#[test]
fn clone3_looks_absent() {
    let exit = enforced(|| {
        // SAFETY: the kernel does not get as far as looking at the arguments.
        let result = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
        i32::from(result == -1 && errno() == libc::ENOSYS)
    });
    assert_eq!(exit, Exit::Code(1));
}

/// Where the filter lets something pass, Landlock still stands.
#[test]
fn landlock_forbids_programs_and_tcp() {
    let exit = sealed(SyscallPolicy::Log, Inodes::Descriptors, || {
        let program = [std::ptr::null()];
        // SAFETY: valid strings and vectors for the calls.
        unsafe { libc::execve(c"/bin/true".as_ptr(), program.as_ptr(), program.as_ptr()) };
        let exec = errno() == libc::EACCES;
        let tcp = std::net::TcpListener::bind("127.0.0.1:0")
            .is_err_and(|err| err.raw_os_error() == Some(libc::EACCES));
        i32::from(exec) | i32::from(tcp) << 1
    });
    assert_eq!(exit, Exit::Code(3));
}

/// What the work takes still goes.
#[test]
fn files_threads_and_unix_sockets_work() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let _listener = UnixListener::bind(path.join("socket")).unwrap();
    let exit = enforced(|| {
        let mut file = File::create(path.join("file")).expect("create");
        file.write_all(b"x").expect("write");
        let root = File::open(&path).expect("open");
        mkdirat(&root, "dir", Mode::S_IRWXU).expect("mkdir");
        // From one directory to another: Landlock has a right of its own for it.
        renameat(&root, "file", &root, "dir/other").expect("move");
        UnixStream::connect(path.join("socket")).expect("connect");
        std::thread::spawn(|| 42).join().expect("thread")
    });
    assert_eq!(exit, Exit::Code(42));
}

/// Only on demand: opening by handle reaches any file of a file system.
#[test]
fn file_handles_are_an_option() {
    let exit = sealed(SyscallPolicy::Enforce, Inodes::Handles, || {
        // SAFETY: the descriptor is invalid, so the pointer is not looked at.
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, -1, std::ptr::null::<u8>(), 0) };
        7
    });
    assert_eq!(exit, Exit::Code(7));
}
