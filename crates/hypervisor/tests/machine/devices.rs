//! The back ends of shared files and sockets: this program under another verb.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStringExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use casemate_config::CachePolicy;
use casemate_devices::{CommandLine, Settings};
use casemate_hypervisor::{FileShare, Vsock};
use casemate_linux::{process::Child, program};
use nix::{
    libc::SIGKILL,
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// Makes this program the back ends' process.
pub(crate) const VERB: &str = "--as-devices";

/// What the share's only file says.
pub(crate) const CONTENT: &str = "written by the host";

/// The port on the host that the test's guest calls.
const PORT: u32 = 1024;

/// Does what the process is for.
pub(crate) fn serve(options: &[String]) -> ExitCode {
    match casemate_devices::main(options.iter().map(Into::into)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A running process, with a share and sockets of its own.
pub(crate) struct Devices {
    directory: PathBuf,
    process: Child,
    calls: UnixListener,
}

impl Devices {
    pub(crate) fn start(directory: PathBuf) -> Self {
        let share = directory.join("share");
        let sockets = directory.join("sockets");
        fs::create_dir_all(&share).unwrap();
        fs::create_dir_all(&sockets).unwrap();
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &share, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
        fs::write(share.join("hello"), CONTENT).unwrap();
        let calls = UnixListener::bind(sockets.join(format!("vm.vsock_{PORT}"))).unwrap();
        calls.set_nonblocking(true).unwrap();
        let listen = |name: &str| UnixListener::bind(directory.join(name)).unwrap();
        let listeners = [listen("fs"), listen("vsock"), listen("sockets/vm.vsock")];
        let options = CommandLine {
            share,
            vsock_dir: sockets,
            fs_listener: 3,
            vsock_listener: 4,
            hybrid_listener: 5,
            ready: None,
            guest_cid: 3,
            cache: CachePolicy::Auto,
            settings: Settings::default(),
        };
        let mut arguments = vec![VERB.as_bytes().to_vec(); 2];
        arguments.extend(options.to_args().into_iter().map(OsStringExt::into_vec));
        let start = program::Start {
            descriptors: &[
                listeners[0].as_fd(),
                listeners[1].as_fd(),
                listeners[2].as_fd(),
            ],
            dies_with_parent: true,
            ..program::Start::default()
        };
        let process = program::start("/proc/self/exe", &arguments, start).unwrap();
        Self {
            directory,
            process,
            calls,
        }
    }

    pub(crate) fn file_share(&self) -> FileShare {
        FileShare {
            tag: "share".to_owned(),
            socket: self.connect("fs"),
        }
    }

    pub(crate) fn vsock(&self) -> Vsock {
        Vsock {
            socket: self.connect("vsock"),
        }
    }

    /// The guest's next call, and what it says.
    pub(crate) async fn call(&self) -> String {
        let calls = self.calls.try_clone().unwrap();
        let calls = tokio::net::UnixListener::from_std(calls).unwrap();
        let said = async {
            let (mut call, _) = calls.accept().await.unwrap();
            let mut text = String::new();
            let read = tokio::io::AsyncReadExt::read_to_string(&mut call, &mut text);
            read.await.unwrap();
            text
        };
        let limit = std::time::Duration::from_secs(30);
        tokio::time::timeout(limit, said).await.expect("a call")
    }

    pub(crate) fn share(&self) -> &Path {
        &self.directory
    }

    fn connect(&self, name: &str) -> OwnedFd {
        UnixStream::connect(self.directory.join(name))
            .unwrap()
            .into()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let _ = self.process.signal(SIGKILL);
        let _ = self.process.wait();
        let _ = umount2(&self.directory.join("share"), MntFlags::MNT_DETACH);
    }
}
