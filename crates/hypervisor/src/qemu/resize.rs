//! Processors and memory of a restored machine, which come before its guest goes on.
//!
//! QEMU's translator divides its buffer into parts, at least as many as there can be
//! processors. A processor takes part after part while it runs, and gives them back when it
//! needs one more and none is left; one that is plugged takes its first, and QEMU aborts when
//! none is left (tcg/region.c, tcg_region_initial_alloc). While nothing has run, one is.
//!
//! Processors have places that were reserved at the start; memory comes as
//! modules, which the back ends of the other devices map like the rest.

use super::{
    commands::{MemoryAdd, ModuleAdd, ObjectDel, ProcessorAdd, QueryProcessors},
    machine::Machine,
};
use crate::{Error, Size};

/// What Linux adds memory by, in MiB: a module of another size is of no use to it
/// (`MIN_MEMORY_BLOCK_SIZE` in arch/x86/include/asm/sparsemem.h).
const MEMORY_STEP_MIB: u32 = 128;

impl Machine {
    /// Makes a machine that has not run yet as large as this.
    pub(super) async fn grow(&self, to: Size) -> Result<(), Error> {
        let size = self.size();
        to.check(size, self.most())?;
        if to.vcpus > size.vcpus {
            self.add_processors(to.vcpus - size.vcpus).await?;
        }
        let missing = to.memory_mib - size.memory_mib;
        if missing > 0 {
            let more = missing.next_multiple_of(MEMORY_STEP_MIB);
            self.add_memory(size.memory_mib, more).await?;
        }
        Ok(())
    }

    async fn add_processors(&self, count: u32) -> Result<(), Error> {
        let mut places = self.execute(&QueryProcessors {}).await?;
        places.retain(|place| place.qom_path.is_none());
        places.sort_by(|one, other| one.props.cmp(&other.props));
        for place in places.into_iter().take(count as usize) {
            let numbers: Vec<String> = place.props.0.values().map(u32::to_string).collect();
            let add = ProcessorAdd {
                driver: &place.kind,
                id: &format!("cpu-{}", numbers.join("-")),
                place: place.props,
            };
            self.execute(&add).await?;
        }
        Ok(())
    }

    /// Adds a module behind the memory that there is, by which it is called.
    async fn add_memory(&self, behind_mib: u32, more_mib: u32) -> Result<(), Error> {
        let id = &format!("memory-{behind_mib}");
        let memory = MemoryAdd {
            qom_type: "memory-backend-memfd",
            id,
            size: u64::from(more_mib) << 20,
            share: true,
        };
        self.execute(&memory).await?;
        let module = ModuleAdd {
            driver: "pc-dimm",
            id: &format!("module-{behind_mib}"),
            memdev: id,
        };
        if let Err(error) = self.execute(&module).await {
            let _ = self.execute(&ObjectDel { id }).await;
            return Err(error);
        }
        Ok(())
    }
}
