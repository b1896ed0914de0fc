//! Init of the test's guest, compiled by the test itself: says that it is
//! there, then does what `test.action=` on the kernel command line asks for.

use std::{
    ffi::CStr,
    fs::{self, File},
    io::Write,
    ptr::null,
    thread::sleep,
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
}

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
        Some("flood") => flood(&mut console),
        Some("idle") => idle(),
        _ => {}
    }
    end(POWER_OFF);
}

fn mount_at(name: &CStr, kind: &CStr) {
    fs::create_dir_all(name.to_str().unwrap()).ok();
    // SAFETY: all pointers are C strings or null.
    unsafe { mount(kind.as_ptr(), name.as_ptr(), kind.as_ptr(), 0, null()) };
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
            if let serial @ 1.. = read("serial").trim().len() {
                now.push(format!(
                    "disk:{}:{}:{}",
                    &read("serial")[..serial],
                    read("size").trim(),
                    read("ro").trim()
                ));
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
