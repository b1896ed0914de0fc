//! A guest to boot, and the files it needs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use casemate_config::Config;
use casemate_hypervisor::{
    BootSpec, ConsoleLog, Hypervisor, Identity, Parameter, Vm,
    qemu::{Qemu, Settings},
};

/// Where the scenarios play.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    pub(crate) kernel: PathBuf,
    initrd: PathBuf,
    pub(crate) settings: Settings,
}

/// User and group of the tests' machines.
pub(crate) const NOBODY: Identity = Identity {
    uid: 0x6fff_0001,
    gid: 0x6fff_0001,
};

pub(crate) const CONSOLE_LIMIT: u64 = 16 * 1024;

impl Stage {
    /// What is missing, as a reason to skip.
    pub(crate) fn set() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("not root".to_owned());
        }
        let named = |variable: &str, usual: PathBuf| {
            let path = std::env::var_os(variable).map_or(usual, PathBuf::from);
            match path.exists() {
                true => Ok(path),
                false => Err(format!("no {} ({variable} names another)", path.display())),
            }
        };
        let mut settings = Settings::from(&Config::default());
        settings.program = named("CASEMATE_TEST_QEMU", settings.program)?;
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let kernel = named(
            "CASEMATE_TEST_KERNEL",
            workspace.join("build/guest/vmlinux"),
        )?;
        let directory = tempfile::tempdir().expect("a directory");
        settings.facts = directory.path().join("host.json");
        let initrd = build_initrd(directory.path());
        Ok(Self {
            directory,
            kernel,
            initrd,
            settings,
        })
    }

    /// The same with the newest QEMU beside the system's, if there is one.
    pub(crate) fn with_newest(&self) -> Option<Self> {
        let usual = std::env::var_os("CASEMATE_TEST_QEMU").is_none();
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/clients");
        let program = clients.join("qemu10/usr/bin/qemu-system-x86_64");
        if !usual || !program.exists() {
            return None;
        }
        Some(self.with(|settings| settings.program = program))
    }

    /// The same with other settings.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut settings = self.settings.clone();
        settings.facts = directory.path().join("host.json");
        change(&mut settings);
        Self {
            directory,
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            settings,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn qemu(&self) -> Qemu {
        Qemu::open(&self.settings).expect("QEMU")
    }

    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(self.path("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A small machine whose init does this.
    pub(crate) fn spec(&self, action: &str) -> BootSpec {
        BootSpec {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            parameters: vec![Parameter::value("test.action", action).expect("a word")],
            vcpus: 1,
            memory_mib: 256,
            hotplug_slots: 0,
            template: false,
            grown: None,
            counted: None,
            file_share: None,
            vsock: None,
            console: ConsoleLog {
                path: self.path("console.log"),
                limit_bytes: CONSOLE_LIMIT,
            },
            netns: None,
            identity: NOBODY,
        }
    }

    pub(crate) async fn boot(&self, spec: BootSpec) -> Box<dyn Vm> {
        self.qemu().boot(spec).await.expect("a machine")
    }

    /// Waits until the guest has said this.
    pub(crate) async fn said(&self, words: &str) {
        let said = async {
            while !self.console().contains(words) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(60), said).await;
        assert!(outcome.is_ok(), "no {words:?} in:\n{}", self.console());
    }
}

/// Compiles the guest's init and packs it.
fn build_initrd(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs");
    let init = directory.join("init");
    let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let status = Command::new(compiler)
        .args(["--edition", "2024", "-O"])
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .arg("-o")
        .args([&init, &source])
        .status()
        .expect("a compiler");
    assert!(status.success());
    let mut archive = Vec::new();
    append(&mut archive, "dev", 0o040_755, (0, 0), &[]);
    // The kernel opens the console for init before anything is mounted.
    append(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    let content = fs::read(&init).expect("the init");
    append(&mut archive, "init", 0o100_755, (0, 0), &content);
    append(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    let initrd = directory.join("initrd.cpio");
    fs::write(&initrd, archive).expect("an initrd");
    initrd
}

/// One file in the format "newc" (cpio(5)).
fn append(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let fields = [
        archive.len() as u32 + 1,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        device.0,
        device.1,
        name.len() as u32 + 1,
        0,
    ];
    let mut pad = |bytes: &[u8]| {
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
    pad(format!("070701{header}{name}\0").as_bytes());
    pad(content);
}
