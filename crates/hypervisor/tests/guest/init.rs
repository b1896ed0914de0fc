//! Init of the test's guest, compiled by the test itself: says that it is
//! there, then does what `test.action=` on the kernel command line asks for.

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{Read, Write},
    ptr::null,
    thread::{sleep, spawn},
    time::Duration,
};

unsafe extern "C" {
    fn mount(
        source: *const i8,
        target: *const i8,
        kind: *const i8,
        flags: u64,
        data: *const i8,
    ) -> i32;
    fn reboot(how: i32) -> i32;
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn bind(socket: i32, address: *const u8, length: u32) -> i32;
    fn connect(socket: i32, address: *const u8, length: u32) -> i32;
    fn recv(socket: i32, buffer: *mut u8, length: usize, flags: i32) -> isize;
    fn send(socket: i32, buffer: *const u8, length: usize, flags: i32) -> isize;
    fn close(descriptor: i32) -> i32;
}

const AF_NETLINK: i32 = 16;
const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const SOCK_RAW: i32 = 3;
const NETLINK_KOBJECT_UEVENT: i32 = 15;

const RESTART: i32 = 0x0123_4567;
const POWER_OFF: i32 = 0x4321_fedc;

fn main() {
    for (name, kind) in [
        (c"/proc", c"proc"),
        (c"/sys", c"sysfs"),
        (c"/dev", c"devtmpfs"),
    ] {
        mount_at(name, kind);
    }
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let word = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name))
    };
    let mut console = File::create("/dev/console").expect("a console");
    let up = fs::read_to_string("/proc/uptime").unwrap_or_default();
    writeln!(console, "READY after {up}").ok();
    match word("test.action=") {
        Some("panic") => return,
        Some("restart") => end(RESTART),
        Some("watch") => watch(&mut console),
        Some("clone") => be_cloned(&mut console),
        Some("flood") => flood(&mut console),
        Some("idle") => idle(),
        _ => {}
    }
    end(POWER_OFF);
}

fn mount_at(name: &CStr, kind: &CStr) {
    fs::create_dir_all(name.to_str().unwrap()).ok();
    // Of the share the source is the tag.
    let source = if kind == c"virtiofs" { c"share" } else { kind };
    // SAFETY: all pointers are C strings or null.
    unsafe { mount(source.as_ptr(), name.as_ptr(), kind.as_ptr(), 0, null()) };
}

fn end(how: i32) {
    // SAFETY: takes an integer.
    unsafe { reboot(how) };
}

/// Says which disks and network cards there are whenever that changes.
fn watch(console: &mut File) {
    let mut known = None;
    loop {
        let mut now = Vec::new();
        for disk in fs::read_dir("/sys/class/block")
            .into_iter()
            .flatten()
            .flatten()
        {
            let read = |file: &str| fs::read_to_string(disk.path().join(file)).unwrap_or_default();
            // Whatever is read may be of a disk that has just gone.
            let (serial, size, ro) = (read("serial"), read("size"), read("ro"));
            let (serial, size, ro) = (serial.trim(), size.trim(), ro.trim());
            if !serial.is_empty() && !size.is_empty() {
                now.push(format!("disk:{serial}:{size}:{ro}"));
            }
        }
        for card in fs::read_dir("/sys/class/net")
            .into_iter()
            .flatten()
            .flatten()
        {
            let address = fs::read_to_string(card.path().join("address")).unwrap_or_default();
            // Not those that the kernel makes up.
            if card.path().join("device").exists() {
                now.push(format!("card:{}", address.trim()));
            }
        }
        now.sort();
        let now = now.join(" ");
        if known.as_ref() != Some(&now) {
            writeln!(console, "SEES [{now}]").ok();
            known = Some(now);
        }
        sleep(Duration::from_millis(10));
    }
}

/// Uses what is plugged as soon as the kernel tells of it.
fn be_cloned(console: &mut File) {
    // SAFETY: integers, and an address of the length given: struct sockaddr_nl of
    // <linux/netlink.h>, which asks for the kernel's own messages.
    let events = unsafe {
        let events = socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT);
        let mut address = [0_u8; 12];
        address[..2].copy_from_slice(&(AF_NETLINK as u16).to_ne_bytes());
        address[8] = 1;
        assert_eq!(bind(events, address.as_ptr(), 12), 0);
        events
    };
    spawn(watch_generation);
    writeln!(console, "WAITS").ok();
    let mut message = vec![0; 8192];
    loop {
        // SAFETY: the buffer is as long as is said.
        let length = unsafe { recv(events, message.as_mut_ptr(), message.len(), 0) };
        let text = String::from_utf8_lossy(&message[..length.max(0) as usize]);
        let has = |word: &str| text.split('\0').any(|field| field == word);
        if has("ACTION=bind") && has("DRIVER=vmw_vsock_virtio_transport") {
            call_host();
        } else if has("ACTION=bind") && has("DRIVER=virtiofs") {
            mount_at(c"/share", c"virtiofs");
            let hello = fs::read_to_string("/share/hello");
            writeln!(console, "FILE [{}]", hello.unwrap_or_default()).ok();
        } else if has("ACTION=add") && has("SUBSYSTEM=cpu") {
            let path = text.split('\0').find_map(|field| field.strip_prefix("DEVPATH="));
            fs::write(format!("/sys{}/online", path.unwrap_or_default()), "1").ok();
            let online = fs::read_to_string("/sys/devices/system/cpu/online");
            writeln!(console, "PROCESSORS [{}]", online.unwrap_or_default().trim()).ok();
        } else if has("ACTION=online") && has("SUBSYSTEM=memory") {
            let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let kib: Option<u64> = memory.split_whitespace().nth(1).and_then(|n| n.parse().ok());
            writeln!(console, "MEMORY [{} MiB]", kib.unwrap_or_default() >> 10).ok();
        } else {
            continue;
        }
        if fs::exists("/share/large").unwrap_or(false) {
            let large = fs::read("/share/large").unwrap_or_default();
            let sum: u64 = large.iter().map(|byte| u64::from(*byte)).sum();
            writeln!(console, "LARGE [{} {sum}]", large.len()).ok();
            call_host();
        }
    }
}

/// Says when the kernel has been told that it is another machine now.
fn watch_generation() {
    let mut messages = File::open("/dev/kmsg").expect("the kernel's messages");
    let mut message = [0; 8192];
    while let Ok(length) = messages.read(&mut message) {
        if String::from_utf8_lossy(&message[..length]).contains("virtual machine fork") {
            let mut console = File::create("/dev/console").expect("a console");
            writeln!(console, "GENERATION").ok();
        }
    }
}

/// Says to the host what only this machine can know.
fn call_host() {
    let mut identity = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut identity))
        .expect("random numbers");
    let text = format!("random {:032x}", u128::from_ne_bytes(identity));
    // SAFETY: integers, an address of the length given (struct sockaddr_vm of
    // <linux/vm_sockets.h>: the host's port 1024), and a buffer as long as is said.
    unsafe {
        let call = socket(AF_VSOCK, SOCK_STREAM, 0);
        let mut address = [0_u8; 16];
        address[..2].copy_from_slice(&(AF_VSOCK as u16).to_ne_bytes());
        address[4..8].copy_from_slice(&1024_u32.to_ne_bytes());
        address[8..12].copy_from_slice(&2_u32.to_ne_bytes());
        if connect(call, address.as_ptr(), 16) == 0 {
            send(call, text.as_ptr(), text.len(), 0);
        }
        close(call);
    }
}

fn idle() -> ! {
    loop {
        sleep(Duration::from_secs(1000));
    }
}

fn flood(console: &mut File) {
    for n in 0..1000 {
        writeln!(console, "line {n} of many that nobody wants to read").ok();
    }
    idle();
}
