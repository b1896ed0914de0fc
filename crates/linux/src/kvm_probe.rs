//! Whether KVM can run a 64-bit guest here, found out by running one.
//!
//! An open `/dev/kvm` proves little: without virtualization in the processor
//! some kernels still interpret the guest's instructions one by one (seen: about
//! 1 µs each, and no Linux kernel gets far), and a nested host may hang on the
//! first entry. The guest of this probe switches itself to long mode, writes a
//! byte that it computed in a 64-bit register to a port, and then counts.

use std::{fmt, fs::File, io, ptr::NonNull, time::Duration};

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};

use crate::{
    deadline,
    process::{self, Birth},
};

/// What the probe found. Each failure is one line without the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The guest ran in 64-bit mode.
    Works,
    /// `/dev/kvm` cannot be opened.
    NoDevice(String),
    /// The interface is not the one that virtual machine monitors need.
    Interface(String),
    /// A guest could be made, but did not do what it should.
    Guest(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => write!(f, "a guest entered 64-bit mode"),
            Self::NoDevice(why) | Self::Interface(why) | Self::Guest(why) => f.write_str(why),
        }
    }
}

/// Runs the probe in a child process, which is killed after `limit`: a guest on
/// a broken host may never return.
///
/// # Errors
/// When no child can be made.
pub fn run(limit: Duration) -> io::Result<Finding> {
    let (report, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let parent = std::process::id();
    let child = process::spawn(Birth::default(), || {
        if process::die_with_parent(parent).is_err() {
            return 1;
        }
        let finding = probe().err().unwrap_or(Finding::Works);
        let line = encode(&finding);
        i32::from(nix::unistd::write(&writer, line.as_bytes()).is_err())
    })?;
    drop(writer);
    let Some(exit) = deadline::wait_or_kill(&child, limit)? else {
        return Ok(Finding::Guest(format!("it hung for {limit:?}")));
    };
    let line = io::read_to_string(File::from(report))?;
    Ok(decode(&line).unwrap_or_else(|| Finding::Guest(format!("the probe {exit}"))))
}

fn encode(finding: &Finding) -> String {
    match finding {
        Finding::Works => "W".to_owned(),
        Finding::NoDevice(why) => format!("D{why}"),
        Finding::Interface(why) => format!("I{why}"),
        Finding::Guest(why) => format!("G{why}"),
    }
}

fn decode(line: &str) -> Option<Finding> {
    let why = line.get(1..)?.to_owned();
    match line.as_bytes()[0] {
        b'W' => Some(Finding::Works),
        b'D' => Some(Finding::NoDevice(why)),
        b'I' => Some(Finding::Interface(why)),
        b'G' => Some(Finding::Guest(why)),
        _ => None,
    }
}

/// What every virtual machine monitor for Linux guests asks KVM for.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
];

fn probe() -> Result<(), Finding> {
    let kvm = Kvm::new().map_err(|error| Finding::NoDevice(error.to_string()))?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        let why = format!("API version {version} instead of {KVM_API_VERSION}");
        return Err(Finding::Interface(why));
    }
    if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(Finding::Interface(format!("no {name}")));
    }
    let failed = |what: &'static str| {
        move |error: kvm_ioctls::Error| Finding::Guest(format!("{what}: {error}"))
    };
    let vm = kvm.create_vm().map_err(failed("making a machine"))?;
    // Old Intel processors keep real mode going in three pages of their own.
    vm.set_tss_address(0xfffb_d000)
        .map_err(failed("setting the TSS address"))?;
    give_memory(&vm).map_err(failed("giving the machine memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("making a processor"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("reading CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("setting CPUID"))?;
    start_at_code(&vcpu).map_err(failed("setting registers"))?;
    observe(&mut vcpu)
}

/// The guest leaves when it has reached 64-bit mode, and then after each round
/// of a loop that a processor runs in far less than the time allowed, but KVM's
/// instruction interpreter does not. One quick loop is enough: a host that is a
/// guest itself may be charged for time in which others ran.
fn observe(vcpu: &mut VcpuFd) -> Result<(), Finding> {
    expect_proof(vcpu, "on its way to 64-bit mode")?;
    let mut took = Duration::MAX;
    for _ in 0..LOOPS {
        let start = thread_time();
        expect_proof(vcpu, "in 64-bit mode")?;
        took = took.min(thread_time().saturating_sub(start));
        if took <= LOOP_LIMIT {
            break;
        }
    }
    if took > LOOP_LIMIT {
        let why = format!(
            "its instructions are interpreted, not run: {ROUNDS} rounds of a loop took {took:.0?}"
        );
        return Err(Finding::Guest(why));
    }
    Ok(())
}

fn expect_proof(vcpu: &mut VcpuFd, place: &str) -> Result<(), Finding> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(PORT, [PROOF])) => Ok(()),
        Ok(other) => Err(Finding::Guest(format!("it left {place}: {other:?}"))),
        Err(error) => Err(Finding::Guest(format!("it left {place}: {error}"))),
    }
}

/// Processor time of this thread, so that a busy host does not count.
fn thread_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(Duration::ZERO, Duration::from)
}

fn start_at_code(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut segments = vcpu.get_sregs()?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    vcpu.set_sregs(&segments)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = CODE as u64;
    registers.rflags = 2;
    vcpu.set_regs(&registers)
}

const PORT: u16 = 0x10;
const PROOF: u8 = 0x2a;
const ROUNDS: u32 = 50_000;
const LOOPS: u32 = 3;
const LOOP_LIMIT: Duration = Duration::from_millis(20);
const MEMORY: usize = 0x8000;
const CODE: usize = 0x1000;
const PAGE_MAP: usize = 0x2000;
const PAGE_DIRECTORY_POINTERS: usize = 0x3000;
const PAGE_DIRECTORY: usize = 0x4000;

/// Code, and page tables that map the first 2 MiB to themselves (Intel SDM
/// volume 3, 4.5: 4-level paging).
fn give_memory(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    let mut memory = vec![0; MEMORY];
    memory[CODE..CODE + code().len()].copy_from_slice(code());
    let mut entry =
        |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    entry(PAGE_MAP, PAGE_DIRECTORY_POINTERS as u64 | PRESENT_WRITABLE);
    entry(
        PAGE_DIRECTORY_POINTERS,
        PAGE_DIRECTORY as u64 | PRESENT_WRITABLE,
    );
    entry(PAGE_DIRECTORY, PRESENT_WRITABLE | LARGE_PAGE);

    let pages = map_pages(&memory).map_err(|errno| kvm_ioctls::Error::new(errno as i32))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: pages.as_ptr() as u64,
    };
    // SAFETY: the pages are mapped for the rest of this process, and nothing
    // in it refers to them: only the guest writes there.
    unsafe { vm.set_user_memory_region(region) }
}

/// Anonymous pages with this content that stay mapped for ever.
fn map_pages(content: &[u8]) -> nix::Result<NonNull<u8>> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    let length = std::num::NonZeroUsize::new(content.len()).ok_or(nix::Error::EINVAL)?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let pages = unsafe {
        mmap_anonymous(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE,
        )
    }?
    .cast::<u8>();
    // SAFETY: the mapping is as long as the content, and nobody else knows it.
    unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), pages.as_ptr(), content.len()) };
    Ok(pages)
}

// Runs at address CODE in real mode with every segment base 0. It enables PAE,
// loads the page tables, sets EFER.LME, turns on paging and protection at once
// and jumps into a 64-bit segment (Intel SDM volume 3, 10.8.5). There it writes
// the proof, counts ROUNDS down and begins again.
std::arch::global_asm!(
    ".pushsection .rodata",
    "casemate_probe_start:",
    ".code16",
    "cli",
    "xorw %ax, %ax",
    "movw %ax, %ds",
    "lgdtl {code} + 3f - casemate_probe_start",
    "movl $0x20, %eax",
    "movl %eax, %cr4",
    "movl ${page_map}, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "movl %cr0, %eax",
    "orl $0x80000001, %eax",
    "movl %eax, %cr0",
    "ljmpl $8, ${code} + 2f - casemate_probe_start",
    ".code64",
    "2:",
    "movabsq ${proof} << 32, %rax",
    "shrq $32, %rax",
    "6:",
    "outb %al, ${port}",
    "movl ${rounds}, %ecx",
    "5:",
    "decl %ecx",
    "jnz 5b",
    "jmp 6b",
    "3:",
    ".word 15",
    ".long {code} + 4f - casemate_probe_start",
    ".balign 8",
    "4:",
    ".quad 0",
    // Code, present, 64-bit.
    ".quad 0x00209a0000000000",
    "casemate_probe_end:",
    ".popsection",
    code = const CODE,
    page_map = const PAGE_MAP,
    proof = const PROOF,
    port = const PORT,
    rounds = const ROUNDS,
    options(att_syntax)
);

fn code() -> &'static [u8] {
    unsafe extern "C" {
        #[link_name = "casemate_probe_start"]
        static START: u8;
        #[link_name = "casemate_probe_end"]
        static END: u8;
    }
    let (start, end) = (&raw const START, &raw const END);
    // SAFETY: both labels stand around the same read-only bytes, in order.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_tells_what_the_processor_can_do() {
        let finding = run(Duration::from_secs(5)).unwrap();
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let capable = flags
            .split_ascii_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm");
        if !std::path::Path::new("/dev/kvm").exists() {
            assert!(matches!(finding, Finding::NoDevice(_)), "{finding}");
        } else if !capable {
            assert_ne!(finding, Finding::Works);
        }
        eprintln!("{finding:?}");
    }

    #[test]
    fn findings_survive_the_pipe() {
        for finding in [
            Finding::Works,
            Finding::NoDevice("x".into()),
            Finding::Interface("no KVM_CAP_IRQFD".into()),
            Finding::Guest(String::new()),
        ] {
            assert_eq!(decode(&encode(&finding)), Some(finding));
        }
        assert_eq!(decode(""), None);
    }

    #[test]
    fn the_guest_fits_its_page() {
        assert!(code().len() > 60 && CODE + code().len() <= PAGE_MAP);
    }
}
