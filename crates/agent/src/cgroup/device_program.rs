//! Device rules as a program for BPF_PROG_TYPE_CGROUP_DEVICE.
//!
//! The kernel asks once per open or mknod: what kind of device, which number,
//! which of read, write and mknod. Later rules win, and each access is decided
//! on its own ("allow r" and "allow w" together allow an open for both). So the
//! program walks the rules from the last to the first and keeps what is not
//! decided yet in a register: an allowing rule takes its accesses out, a denying
//! one that names any of the rest ends it. What no rule speaks of is denied.

use casemate_linux::bpf::instruction;
use casemate_protocol::agent::DeviceRule;

use crate::error::{Error, Result};

/// Longest list of rules that is taken: at most nine instructions each, far
/// below the million that the kernel verifies.
const MAX_RULES: usize = 4096;

/// BPF_DEVCG_DEV_*.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// Every access: BPF_DEVCG_ACC_MKNOD | READ | WRITE.
const ALL: u32 = 0b111;

/// Registers: the context, then what the prologue loads from it.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;
const RESULT: u8 = 0;

/// Opcodes, from class, size, operation and source as in <linux/bpf.h>.
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
/// Compares 32 bits, so that a large number is not taken for a negative one.
const JUMP_IF_NOT_EQUAL_32: u8 = 0x56;
const EXIT: u8 = 0x95;

/// Refuses what [`compile`] could not express.
pub(super) fn validate(rules: &[DeviceRule]) -> Result<()> {
    if rules.len() > MAX_RULES {
        return Err(Error::Limit {
            what: "device rules",
            count: rules.len(),
            most: MAX_RULES,
        });
    }
    for rule in rules {
        if !matches!(rule.kind.as_str(), "a" | "b" | "c") {
            return Err(Error::invalid(
                format!("device rule of kind {:?}", rule.kind),
                "must be a, b or c",
            ));
        }
        if !rule.access.bytes().all(|letter| b"rwm".contains(&letter)) {
            return Err(Error::invalid(
                format!("device rule with access {:?}", rule.access),
                "must be made of r, w and m",
            ));
        }
    }
    Ok(())
}

/// The program, as `struct bpf_insn` values.
pub(super) fn compile(rules: &[DeviceRule]) -> Vec<u64> {
    let mut program = vec![
        // access_type holds the kind in its lower half, the access above.
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, UNDECIDED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, UNDECIDED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let access = access_bits(&rule.access);
        if access == 0 {
            continue;
        }
        let conditions = conditions(rule);
        let decides_all = conditions.is_empty() && access == ALL;
        let verdict = if decides_all {
            answer(rule.allow)
        } else if rule.allow {
            allow_some(access)
        } else {
            deny_some(access)
        };
        for (n, (register, value)) in conditions.iter().enumerate() {
            // Over the other conditions and the verdict.
            let skip = (conditions.len() - 1 - n + verdict.len()) as i16;
            program.push(instruction(
                JUMP_IF_NOT_EQUAL_32,
                *register,
                0,
                skip,
                *value,
            ));
        }
        program.extend(verdict);
        if decides_all {
            // The verifier refuses code that is never reached.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// What must hold for the rule to apply: register and value.
fn conditions(rule: &DeviceRule) -> Vec<(u8, u32)> {
    let kind = match rule.kind.as_str() {
        "b" => Some(BLOCK),
        "c" => Some(CHAR),
        _ => None,
    };
    [(KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)]
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect()
}

fn access_bits(access: &str) -> u32 {
    access.bytes().fold(0, |bits, letter| {
        bits | match letter {
            b'm' => 1,
            b'r' => 2,
            b'w' => 4,
            _ => 0,
        }
    })
}

fn answer(allowed: bool) -> Vec<u64> {
    vec![
        instruction(MOVE, RESULT, 0, 0, u32::from(allowed)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn allow_some(access: u32) -> Vec<u64> {
    let mut code = vec![
        instruction(AND, UNDECIDED, 0, 0, ALL & !access),
        instruction(JUMP_IF_NOT_EQUAL, UNDECIDED, 0, 2, 0),
    ];
    code.extend(answer(true));
    code
}

fn deny_some(access: u32) -> Vec<u64> {
    let mut code = vec![
        instruction(MOVE_REGISTER, SCRATCH, UNDECIDED, 0, 0),
        instruction(AND, SCRATCH, 0, 0, access),
        instruction(JUMP_IF_EQUAL, SCRATCH, 0, 2, 0),
    ];
    code.extend(answer(false));
    code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(
        allow: bool,
        kind: &str,
        major: Option<u32>,
        minor: Option<u32>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind: kind.into(),
            major,
            minor,
            access: access.into(),
            ..Default::default()
        }
    }

    /// Runs a program as the kernel would.
    fn run(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        loop {
            let word = program[at];
            let (to, from) = ((word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
            let offset = (word >> 16) as i16;
            let immediate = (word >> 32) as u32;
            // Immediates are sign-extended to 64 bits.
            let wide = immediate as i32 as i64 as u64;
            let mut jump = false;
            match word as u8 {
                LOAD_WORD => registers[to] = u64::from(context[offset as usize / 4]),
                MOVE_REGISTER => registers[to] = registers[from],
                MOVE => registers[to] = wide,
                AND => registers[to] &= wide,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_IF_EQUAL => jump = registers[to] == wide,
                JUMP_IF_NOT_EQUAL => jump = registers[to] != wide,
                JUMP_IF_NOT_EQUAL_32 => jump = registers[to] as u32 != immediate,
                EXIT => return registers[0] == 1,
                other => panic!("unknown opcode {other:#x}"),
            }
            at = (at as i64 + 1 + if jump { i64::from(offset) } else { 0 }) as usize;
        }
    }

    /// The rules as their definition reads: for each access, the last rule that
    /// names it decides.
    fn allowed(rules: &[DeviceRule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        (0..3).filter(|bit| access & 1 << bit != 0).all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    let kinds = match rule.kind.as_str() {
                        "b" => kind == BLOCK,
                        "c" => kind == CHAR,
                        _ => true,
                    };
                    kinds
                        && rule.major.is_none_or(|value| value == major)
                        && rule.minor.is_none_or(|value| value == minor)
                        && access_bits(&rule.access) & 1 << bit != 0
                })
                .is_some_and(|rule| rule.allow)
        })
    }

    fn any_rule() -> impl Strategy<Value = DeviceRule> {
        let number = || prop::option::of(prop_oneof![0_u32..4, Just(u32::MAX)]);
        let access = prop::sample::subsequence(vec!['r', 'w', 'm'], 0..=3);
        (
            any::<bool>(),
            prop::sample::select(vec!["a", "b", "c"]),
            number(),
            number(),
            access,
        )
            .prop_map(|(allow, kind, major, minor, access)| {
                rule(
                    allow,
                    kind,
                    major,
                    minor,
                    &access.into_iter().collect::<String>(),
                )
            })
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_say(
            rules in prop::collection::vec(any_rule(), 0..8),
            kind in 1_u32..=2,
            access in 1_u32..=7,
            major in prop_oneof![0_u32..4, Just(u32::MAX)],
            minor in prop_oneof![0_u32..4, Just(u32::MAX)],
        ) {
            let program = compile(&rules);
            prop_assert_eq!(
                run(&program, kind, access, major, minor),
                allowed(&rules, kind, access, major, minor)
            );
        }

        #[test]
        fn the_kernel_accepts_every_program(rules in prop::collection::vec(any_rule(), 0..8)) {
            if nix::unistd::geteuid().is_root() {
                casemate_linux::bpf::load_device_program(&compile(&rules)).unwrap();
            }
        }
    }

    #[test]
    fn the_usual_rules_compile_to_this() {
        let rules = [
            rule(false, "a", None, None, "rwm"),
            rule(true, "c", Some(1), Some(3), "rwm"),
            rule(true, "b", None, None, "m"),
        ];
        let program: Vec<_> = compile(&rules)
            .into_iter()
            .map(|word| format!("{:016x}", word.swap_bytes()))
            .collect();
        assert_eq!(
            program,
            [
                "6112000000000000", // r2 = access_type
                "bf23000000000000", // r3 = r2
                "57020000ffff0000", // r2 &= 0xffff
                "7703000010000000", // r3 >>= 16
                "6114040000000000", // r4 = major
                "6115080000000000", // r5 = minor
                "5602040001000000", // unless block: skip
                "5703000006000000", // r3 &= ~mknod
                "5503020000000000", // undecided: next rule
                "b700000001000000", // r0 = 1
                "9500000000000000", // exit
                "5602060002000000", // unless char: skip
                "5604050001000000", // unless major 1: skip
                "5605040003000000", // unless minor 3: skip
                "5703000000000000", // r3 = 0
                "5503020000000000",
                "b700000001000000",
                "9500000000000000",
                "b700000000000000", // deny the rest
                "9500000000000000",
            ]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(validate(&[rule(true, "p", None, None, "r")]).is_err());
        assert!(validate(&[rule(true, "c", None, None, "x")]).is_err());
        assert!(validate(&vec![rule(true, "c", None, None, "r"); MAX_RULES + 1]).is_err());
    }
}
