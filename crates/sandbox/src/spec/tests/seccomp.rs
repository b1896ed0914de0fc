//! Compiled seccomp profiles, run as the kernel runs them.

use libseccomp::{ScmpArch, ScmpSyscall};
use serde_json::{Value, json};

use crate::spec::seccomp::compile;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

// linux/seccomp.h
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_THREAD: u32 = 0;
const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;

/// struct seccomp_data.
struct Call {
    architecture: u32,
    number: u32,
    args: [u64; 6],
}

impl Call {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.number.to_le_bytes().to_vec();
        bytes.extend(self.architecture.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(self.args.iter().flat_map(|arg| arg.to_le_bytes()));
        bytes
    }
}

/// The classic BPF of seccomp(2), as far as libseccomp uses it.
fn run(program: &[u8], call: &Call) -> u32 {
    let data = call.bytes();
    let instructions: Vec<&[u8]> = program.chunks_exact(8).collect();
    let (mut accumulator, mut next) = (0_u32, 0);
    loop {
        let instruction = instructions[next];
        let code = u16::from_le_bytes([instruction[0], instruction[1]]);
        let operand = u32::from_le_bytes(instruction[4..8].try_into().unwrap());
        let on_true = usize::from(instruction[2]);
        let on_false = usize::from(instruction[3]);
        next += 1;
        let holds = match code {
            0x20 => {
                let at = operand as usize;
                accumulator = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
                continue;
            }
            0x54 => {
                accumulator &= operand;
                continue;
            }
            0x05 => {
                next += operand as usize;
                continue;
            }
            0x06 => return operand,
            0x15 => accumulator == operand,
            0x25 => accumulator > operand,
            0x35 => accumulator >= operand,
            0x45 => accumulator & operand != 0,
            other => panic!("instruction {other:#x}"),
        };
        next += if holds { on_true } else { on_false };
    }
}

/// A compiled profile.
struct Filter(Vec<u8>);

impl Filter {
    fn new(profile: Value) -> Self {
        let seccomp = compile(&serde_json::from_value(profile).unwrap()).unwrap();
        assert_eq!(seccomp.program.len() % 8, 0);
        Self(seccomp.program)
    }

    fn call(&self, name: &str, args: [u64; 6]) -> u32 {
        let number = ScmpSyscall::from_name(name).unwrap().as_raw_syscall();
        self.number(X86_64, number as u32, args)
    }

    fn number(&self, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
        let call = Call {
            architecture,
            number,
            args,
        };
        run(&self.0, &call)
    }
}

const NO_ARGS: [u64; 6] = [0; 6];

#[test]
fn the_default_action_and_its_errno() {
    let filter = Filter::new(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"}],
    }));
    assert_eq!(filter.call("read", NO_ARGS), ALLOW);
    assert_eq!(filter.call("write", NO_ARGS), ENOSYS);
    let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["write"], "action": "SCMP_ACT_ALLOW"},
    ]}));
    assert_eq!(filter.call("read", NO_ARGS), EPERM);
}

#[test]
fn a_rule_with_the_default_action_says_nothing() {
    let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
    ]}));
    assert_eq!(filter.call("read", NO_ARGS), ALLOW);
    assert_eq!(filter.call("write", NO_ARGS), ERRNO | 5);
}

#[test]
fn conditions_on_different_arguments_must_all_hold() {
    let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
        "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22,
        "args": [
            {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
            {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"},
        ],
    }]}));
    assert_eq!(filter.call("socket", [16, 0, 9, 0, 0, 0]), ERRNO | 22);
    assert_eq!(filter.call("socket", [16, 0, 8, 0, 0, 0]), ALLOW);
    assert_eq!(filter.call("socket", [2, 0, 9, 0, 0, 0]), ALLOW);
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{
        "names": ["personality"], "action": "SCMP_ACT_ALLOW",
        "args": [
            {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
            {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"},
        ],
    }]}));
    assert_eq!(filter.call("personality", NO_ARGS), ALLOW);
    assert_eq!(filter.call("personality", [8, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(filter.call("personality", [1, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn every_comparison_is_over_64_bits() {
    let big = 1_u64 << 40;
    let cases = [
        ("SCMP_CMP_NE", [big - 1, big + 1], [big, big]),
        ("SCMP_CMP_LT", [0, big - 1], [big, u64::MAX]),
        ("SCMP_CMP_LE", [0, big], [big + 1, u64::MAX]),
        ("SCMP_CMP_EQ", [big, big], [0, big + 1]),
        ("SCMP_CMP_GE", [big, u64::MAX], [0, big - 1]),
        ("SCMP_CMP_GT", [big + 1, u64::MAX], [0, big]),
    ];
    for (operator, matching, others) in cases {
        let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["read"], "action": "SCMP_ACT_KILL",
            "args": [{"index": 1, "value": big, "op": operator}],
        }]}));
        let with = |arg: u64| filter.call("read", [0, arg, 0, 0, 0, 0]);
        assert_eq!(matching.map(with), [KILL_THREAD; 2], "{operator}");
        assert_eq!(others.map(with), [ALLOW; 2], "{operator}");
    }
}

#[test]
fn a_masked_comparison_takes_the_mask_first() {
    let new_namespaces = 0x7e02_0000_u64;
    let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{
        "names": ["clone"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": new_namespaces, "valueTwo": 0,
                  "op": "SCMP_CMP_MASKED_EQ"}],
    }]}));
    assert_eq!(filter.call("clone", [0x11, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(filter.call("clone", [0x1000_0011, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn calls_newer_than_the_profile_answer_enosys() {
    let filter = Filter::new(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["openat2"], "action": "SCMP_ACT_ALLOW"}],
    }));
    const OPENAT2: u32 = 437; // the same for all three
    for (architecture, bit) in [(X86_64, 0), (X86_64, X32_BIT), (I386, 0)] {
        let call = |number: u32| filter.number(architecture, number | bit, NO_ARGS);
        assert_eq!(call(OPENAT2), ALLOW, "{architecture:#x} {bit:#x}");
        assert_eq!(call(OPENAT2 - 1), EPERM, "{architecture:#x} {bit:#x}");
        assert_eq!(call(OPENAT2 + 1), ENOSYS, "{architecture:#x} {bit:#x}");
    }
}

#[test]
fn calls_of_an_architecture_that_is_not_listed_are_killed() {
    let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
    ]}));
    assert_eq!(filter.number(I386, 3, NO_ARGS), KILL_THREAD);
    assert_eq!(filter.number(I386, 9999, NO_ARGS), KILL_THREAD);
    assert_eq!(filter.number(X86_64, X32_BIT | 9999, NO_ARGS), KILL_THREAD);
}

#[test]
fn a_permissive_profile_lets_new_calls_pass() {
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
        let filter = Filter::new(json!({"defaultAction": action, "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_KILL"},
        ]}));
        assert_ne!(filter.number(X86_64, 9999, NO_ARGS), ENOSYS, "{action}");
    }
}

#[test]
fn flags_are_those_of_runc() {
    let flags = |flags: Value| {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags});
        compile(&serde_json::from_value(profile).unwrap())
            .unwrap()
            .flags
    };
    assert_eq!(flags(json!(null)), 4);
    assert_eq!(flags(json!([])), 0);
    assert_eq!(
        flags(json!([
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_TSYNC"
        ])),
        2
    );
}

/// Every call of every architecture of podman's profile gets the answer that
/// the profile gives it when it is read from top to bottom.
#[test]
fn the_profile_of_podman_means_what_it_says() {
    let json = std::fs::read(super::golden::golden("podman-run.json")).unwrap();
    let configuration: Value = serde_json::from_slice(&json).unwrap();
    let profile = &configuration["linux"]["seccomp"];
    let filter = Filter::new(profile.clone());
    let rules = profile["syscalls"].as_array().unwrap();
    let unconditional = |action: &str, name: &str| {
        let mut rules = rules.iter().filter(|rule| rule["args"].is_null());
        rules.any(|rule| {
            let names = rule["names"].as_array().unwrap();
            rule["action"] == action && names.iter().any(|listed| listed == name)
        })
    };
    let (mut allowed, mut refused) = (0, 0);
    for (architecture, scmp, bit) in [
        (X86_64, ScmpArch::X8664, 0),
        (X86_64, ScmpArch::X32, X32_BIT),
        (I386, ScmpArch::X86, 0),
    ] {
        for number in 0..460_u32 {
            let call = ScmpSyscall::from_raw_syscall((number | bit) as i32);
            let Ok(name) = call.get_name_by_arch(scmp) else {
                continue;
            };
            let found = filter.number(architecture, number | bit, NO_ARGS);
            if unconditional("SCMP_ACT_ALLOW", &name) {
                assert_eq!(found, ALLOW, "{name} on {scmp:?}");
                allowed += 1;
            } else if unconditional("SCMP_ACT_ERRNO", &name) {
                assert_eq!(found, EPERM, "{name} on {scmp:?}");
                refused += 1;
            }
        }
    }
    assert!(
        allowed > 900 && refused > 50,
        "{allowed} allowed, {refused} refused"
    );
}
