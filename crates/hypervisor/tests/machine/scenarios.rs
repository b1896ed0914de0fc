//! What is true of every machine.

use casemate_hypervisor::Cause;

use crate::{Scenario, guest::Stage};

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        pub(crate) const ALL: &[(&str, Scenario)] =
            &[$((stringify!($name), |stage| Box::pin($name(stage)))),+];
    };
}

scenarios![a_guest_powers_off, a_panic_is_told];

async fn a_guest_powers_off(stage: &Stage) {
    let vm = stage.boot(stage.spec("power-off")).await;
    let exit = vm.exited().await;
    assert_eq!(exit.cause, Cause::PowerOff, "{exit}\n{}", stage.console());
    assert!(
        stage.console().contains("READY after"),
        "{}",
        stage.console()
    );
    let again = vm.exited().await;
    assert_eq!(again, exit);
}

async fn a_panic_is_told(stage: &Stage) {
    let vm = stage.boot(stage.spec("panic")).await;
    let exit = vm.exited().await;
    let words = "the guest's kernel failed: Attempted to kill init! exitcode=0x00000000";
    assert_eq!(exit.to_string(), words, "{}", stage.console());
    assert!(!exit.is_orderly());
}
