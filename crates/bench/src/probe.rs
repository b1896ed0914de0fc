//! The smallest programs that a guest can begin with, as bytes: they need no compiler
//! and no library, so that what is measured is kernel and machine.

/// Asks for a reboot at once, at which a machine started with `-no-reboot` ends:
/// reboot(2).
pub(crate) const ENDS: &[u8] = &[
    0xb8, 0xa9, 0x00, 0x00, 0x00, // mov eax, 169 (reboot)
    0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, 0xfee1dead
    0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, 672274793
    0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, 0x1234567
    0x45, 0x31, 0xd2, // xor r10d, r10d
    0x0f, 0x05, // syscall
    0xeb, 0xfe, // jmp to itself
];

/// Waits for ever: pause(2).
pub(crate) const WAITS: &[u8] = &[
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34 (pause)
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the first
];

/// Where the program is loaded.
const ADDRESS: u64 = 0x40_0000;
/// Sizes of the two headers: System V ABI, "ELF-64 object file format".
const FILE_HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// A program that is nothing but `code`.
pub(crate) fn program(code: &[u8]) -> Vec<u8> {
    let begin = u64::from(FILE_HEADER + PROGRAM_HEADER);
    let size = begin + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    elf.resize(16, 0);
    // An executable for x86-64.
    for half in [2_u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes());
    for word in [ADDRESS + begin, u64::from(FILE_HEADER), 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [FILE_HEADER, PROGRAM_HEADER, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // One segment, which is loaded, read and executed.
    for word in [1_u32, 5] {
        elf.extend(word.to_le_bytes());
    }
    for word in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_kernel_loads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("waits");
        std::fs::write(&path, program(WAITS)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none());
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        // Not everybody may ask.
        if let Ok(call) = call {
            assert!(call.starts_with("34 "), "{call}");
        }
    }
}
