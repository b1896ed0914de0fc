//! What the guest's kernel is told.

use super::command_line::Accelerator;
use crate::Parameter;

/// What the kernel of every guest is told; the specification's own parameters
/// come later and win.
pub(super) fn parameters(
    accelerator: Accelerator,
    most_vcpus: u32,
    counter_khz: Option<u64>,
) -> Vec<Parameter> {
    // A panic is printed in spite of `quiet`, and ends the machine at once.
    // Devices are plugged through ACPI; what root ports could do themselves costs
    // some 10 ms of an emulated start for each, and 6 MiB of eight.
    let mut line =
        String::from("console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on pcie_ports=compat");
    if let Accelerator::Emulation { .. } = accelerator {
        line.push_str(EMULATED);
        // No room for those that never come.
        line.push_str(&format!(" nr_cpus={most_vcpus}"));
    }
    if let Some(khz) = counter_khz {
        // QEMU's translator passes the host's counter through, but a guest that
        // measures its rate on a busy host fails, or gets it wrong.
        line.push_str(&format!(" tsc=reliable tsc_early_khz={khz}"));
        if most_vcpus > 1 {
            // So does every processor but the first, for 140 ms, to find out how
            // to wait.
            line.push_str(&format!(" lpj={}", khz * 1000 / HZ));
        }
    }
    line.split_whitespace().map(Parameter::known).collect()
}

/// Ticks of our own kernel a second (`guest/kernel/base.config`). One with others
/// waits shorter or longer for hardware, of which an emulated machine has none
/// that minds.
const HZ: u64 = 250;

/// What an emulated machine is known to have, so that the kernel need not find
/// it out: timer interrupts that arrive, an APIC timer of 1 GHz (QEMU,
/// hw/intc/apic.c). To wipe the memory of its start, as much as it is, takes a
/// tenth of the start. Our own kernel knows the last two; others ignore them.
const EMULATED: &str = " no_timer_check lapic_timer_khz=1000000 keep_initmem";

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_kernel_ticks_as_it_is_built() {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/kernel/base.config");
        let config = fs::read_to_string(config).unwrap();
        assert!(
            config
                .lines()
                .any(|line| line == format!("CONFIG_HZ_{HZ}=y"))
        );
    }

    #[test]
    fn only_several_processors_need_to_know_how_to_wait() {
        let accelerator = Accelerator::Emulation {
            translation_buffer_mib: 8,
        };
        let line = |vcpus| {
            let parameters = parameters(accelerator, vcpus, Some(2_000_000));
            parameters
                .iter()
                .any(|word| word.to_string() == "lpj=8000000")
        };
        assert!(line(2) && !line(1));
    }
}
