//! A guest's initial root: a cpio archive with its init and one device node.
//!
//! Written here and not by a tool, so that the same init gives the same bytes on every
//! machine: templates are keyed by their digest. The format is Linux'
//! `Documentation/driver-api/early-userspace/buffer-format.rst` ("newc").

/// An entry of the archive.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl<'a> Entry<'a> {
    /// A folder that all may read.
    pub fn folder(name: &'a str) -> Self {
        Self {
            name,
            mode: FOLDER,
            device: (0, 0),
            content: &[],
        }
    }

    /// A program that all may run.
    pub fn program(name: &'a str, content: &'a [u8]) -> Self {
        Self {
            name,
            mode: PROGRAM,
            device: (0, 0),
            content,
        }
    }

    fn character_device(name: &'a str, device: (u32, u32)) -> Self {
        Self {
            name,
            mode: CHARACTER_DEVICE,
            device,
            content: &[],
        }
    }
}

/// The archive whose `/init` is that program.
pub fn archive(init: &[u8]) -> Vec<u8> {
    archive_with(init, Vec::new())
}

/// The archive whose `/init` is `init`, with more entries: folders come before what is in them.
///
/// The kernel opens `/dev/console` for init's standard streams before init can make it.
pub fn archive_with(init: &[u8], more: Vec<Entry<'_>>) -> Vec<u8> {
    let mut entries = vec![
        Entry::folder("dev"),
        Entry::character_device("dev/console", (5, 1)),
        Entry::program("init", init),
    ];
    entries.extend(more);
    let mut archive = Vec::with_capacity(init.len() + 1024);
    for (index, entry) in entries.iter().enumerate() {
        append(&mut archive, entry, index + 1);
    }
    let end = Entry {
        name: "TRAILER!!!",
        mode: 0,
        device: (0, 0),
        content: &[],
    };
    append(&mut archive, &end, entries.len() + 1);
    archive
}

fn append(archive: &mut Vec<u8>, entry: &Entry<'_>, inode: usize) {
    let links = if entry.mode == FOLDER { 2 } else { 1 };
    let fields = [
        inode,
        entry.mode as usize,
        0, // user
        0, // group
        links,
        0, // time of change
        entry.content.len(),
        0, // device the archive was made on, major and minor
        0,
        entry.device.0 as usize,
        entry.device.1 as usize,
        entry.name.len() + 1,
        0, // checksum, unused by this variant
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(entry.name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(entry.content);
    pad(archive);
}

/// Names and contents begin at multiples of four.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn cpio_reads_it_back() {
        if !crate::command::exists("cpio") {
            return;
        }
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin
            .take()
            .unwrap()
            .write_all(&archive(b"seven b"))
            .unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with("dev"),
            "{text}"
        );
        assert!(
            lines[1].starts_with("crw-------") && lines[1].contains("5,   1"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 7 "),
            "{text}"
        );
    }
}
