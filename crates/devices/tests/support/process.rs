//! A running device process, and the VMM's end of its two sockets.

use std::fs;
use std::io::{PipeReader, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use casemate_devices::{CommandLine, Settings};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::{CID, MEMORY};
use super::ring::{Memory, Ring};

/// The process, its share, and its directory of sockets.
pub struct Process {
    pub child: Child,
    /// As this thread, in the place of the monitor, sees it.
    pub share: PathBuf,
    directory: tempfile::TempDir,
}

/// Moves this thread to a mount namespace of its own, as the monitor does.
fn become_monitor(share: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).unwrap();
    mount(Some("share"), share, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    mount(none, share, none, MsFlags::MS_SHARED, none).unwrap();
}

impl Process {
    /// Starts it and waits until it is ready.
    pub fn start() -> Process {
        Process::start_with(Settings::default())
    }

    /// The same with other settings.
    pub fn start_with(settings: Settings) -> Process {
        let (process, mut ready) = Process::start_in("share", settings);
        let mut byte = [0];
        ready
            .read_exact(&mut byte)
            .expect("the process says that it is ready");
        process
    }

    /// Starts it with this directory as its share; the monitor mounts at
    /// `share`. The reader gets a byte when the process is ready.
    pub fn start_in(shared: &str, settings: Settings) -> (Process, PipeReader) {
        let directory = tempfile::tempdir().unwrap();
        let share = directory.path().join("share");
        let vsock_dir = directory.path().join("vsock");
        fs::create_dir(&share).unwrap();
        fs::create_dir(&vsock_dir).unwrap();
        become_monitor(&share);
        let bind = |path: PathBuf| UnixListener::bind(path).unwrap();
        let fs_listener = bind(directory.path().join("fs.sock"));
        let vsock_listener = bind(directory.path().join("vsock.sock"));
        let hybrid_listener = bind(vsock_dir.join("vm.vsock"));
        let (ready, readiness) = std::io::pipe().unwrap();
        fs::create_dir_all(directory.path().join(shared)).unwrap();
        let line = CommandLine {
            share: directory.path().join(shared),
            vsock_dir,
            fs_listener: fs_listener.as_raw_fd(),
            vsock_listener: vsock_listener.as_raw_fd(),
            hybrid_listener: hybrid_listener.as_raw_fd(),
            ready: Some(readiness.as_raw_fd()),
            guest_cid: CID,
            cache: casemate_config::CachePolicy::Auto,
            settings,
        };
        let inherited: Vec<RawFd> = [
            line.fs_listener,
            line.vsock_listener,
            line.hybrid_listener,
            readiness.as_raw_fd(),
        ]
        .into();
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-devices"));
        command.args(line.to_args()).stdin(Stdio::null());
        // SAFETY: between fork and exec only fcntl is called.
        unsafe {
            command.pre_exec(move || {
                for fd in &inherited {
                    let fd = std::os::fd::BorrowedFd::borrow_raw(*fd);
                    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        (
            Process {
                child,
                share,
                directory,
            },
            ready,
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A line of `/proc/<pid>/status`.
    pub fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{field}:\t")));
        line.unwrap_or_else(|| panic!("no {field} in the status"))
            .to_owned()
    }

    pub fn namespace(&self, kind: &str) -> PathBuf {
        fs::read_link(format!("/proc/{}/ns/{kind}", self.child.id())).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = umount2(&self.share, MntFlags::MNT_DETACH);
    }
}

/// Guest memory that another process can map.
pub fn shared_memory() -> Memory {
    let file = casemate_linux::descriptor::memory_file("guest").unwrap();
    file.set_len(MEMORY as u64).unwrap();
    let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
    Memory::from_ranges_with_files([range]).unwrap()
}

/// The VMM's side of one device.
pub struct FrontEnd {
    pub frontend: Frontend,
    pub kicks: Vec<EventFd>,
    pub calls: Vec<EventFd>,
    acked: u64,
}

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;

impl FrontEnd {
    /// Negotiates, hands over memory and rings, starts the device.
    pub fn connect(socket: &Path, memory: &Memory, rings: &[&Ring]) -> FrontEnd {
        let mut frontend = Frontend::connect(socket, rings.len() as u64).unwrap();
        frontend.set_owner().unwrap();
        let mut acked = VERSION_1 | PROTOCOL_FEATURES;
        if rings[0].event_idx {
            acked |= EVENT_IDX;
        }
        assert_eq!(frontend.get_features().unwrap() & acked, acked);
        let offered = frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG;
        frontend.set_protocol_features(offered & wanted).unwrap();
        let mut this = FrontEnd {
            frontend,
            kicks: Vec::new(),
            calls: Vec::new(),
            acked,
        };
        this.start(memory, rings, &vec![0; rings.len()]);
        this
    }

    /// Starts the rings from these positions.
    pub fn start(&mut self, memory: &Memory, rings: &[&Ring], positions: &[u16]) {
        self.frontend.set_features(self.acked).unwrap();
        let regions: Vec<_> = memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect();
        self.frontend.set_mem_table(&regions).unwrap();
        let base = memory.iter().next().unwrap().as_ptr() as u64;
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        self.kicks = rings.iter().map(|_| event()).collect();
        self.calls = rings.iter().map(|_| event()).collect();
        for (index, ring) in rings.iter().enumerate() {
            self.frontend.set_vring_num(index, ring.size).unwrap();
            self.frontend
                .set_vring_base(index, positions[index])
                .unwrap();
            let addresses = VringConfigData {
                queue_max_size: ring.size,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: base + ring.descriptors,
                used_ring_addr: base + ring.used,
                avail_ring_addr: base + ring.available,
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &addresses).unwrap();
            self.frontend
                .set_vring_call(index, &self.calls[index])
                .unwrap();
            self.frontend
                .set_vring_kick(index, &self.kicks[index])
                .unwrap();
            self.frontend.set_vring_enable(index, true).unwrap();
            // As QEMU does: the back end looks at the ring once.
            self.kicks[index].write(1).unwrap();
        }
    }

    /// Stops the rings; says how far each had been taken.
    pub fn stop(&mut self) -> Vec<u16> {
        (0..self.kicks.len())
            .map(|index| self.frontend.get_vring_base(index).unwrap() as u16)
            .collect()
    }

    pub fn config(&mut self, len: usize) -> Vec<u8> {
        let flags = VhostUserConfigFlags::WRITABLE;
        self.frontend
            .get_config(0, len as u32, flags, &vec![0; len])
            .unwrap()
            .1
    }
}
