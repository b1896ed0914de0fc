//! Templates in all this: one is made, or a sandbox begins from one.

use std::{fs, sync::Arc};

use casemate_hypervisor::{Hypervisor, fake::Fake};
use casemate_linux::view::View;
use casemate_sandbox::{
    Size,
    template::{self, Made, Templates, making},
};

use crate::{
    House,
    agent::{FakeAgent, call_the_host},
    config,
};

/// For sandboxes of the configured size.
pub(crate) fn used() -> Templates {
    let machine = casemate_config::Config::default().machine;
    Templates {
        size: Size {
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
        },
        view: Arc::new(View::own().expect("the mount namespace")),
    }
}

/// Makes the template of the sandbox's machine.
pub(crate) async fn make(
    house: House<'_>,
    hypervisor: &dyn Hypervisor,
    agent: Arc<FakeAgent>,
) -> Result<(), String> {
    // The user's file is looked for in any case.
    fs::create_dir_all(house.folder.join("root")).expect("directory");
    fs::create_dir_all(house.folder.join("bundle-web/rootfs")).expect("directory");
    fs::write(house.folder.join("bundle-web/rootfs/precious"), "data").expect("file");
    let config = &config(house);
    let fit = making::fit(&Fake::new(), config).expect("a fake has a recipe");
    let place = config
        .template
        .directory
        .join(format!(".new-{}", fit.key()));
    let calls = tokio::task::spawn_local(call_the_host(place, agent));
    let made = template::make(hypervisor, config).await;
    calls.abort();
    match made {
        Ok(Made::New(header, _)) => {
            assert_eq!(header.key, *fit.key());
            Ok(())
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

/// The step of the agent in which a clone on trial calls.
pub(crate) const FIRST_TRIAL: u32 = 4;

/// What the clone does of a template that was made anew.
pub(crate) fn is_second_trial(part: &str, step: u32) -> bool {
    part == "maker-retried-agent" && (2 * FIRST_TRIAL..=2 * FIRST_TRIAL + 1).contains(&step)
}

/// Where there is a template, a sandbox comes up although something fails before
/// its guest is prepared: then it boots. That of the hypervisor are the recipe, the
/// template, the machine before and after it is made; that of the agent the call,
/// the greeting, the preparation. So is a template made, whose clone on trial fails
/// once.
pub(crate) fn cannot_matter(part: &str, step: u32) -> bool {
    match part {
        "clone-hypervisor" => step <= 4,
        "clone-agent" => step <= 3,
        "maker-hypervisor" => (7..=9).contains(&step),
        "maker-agent" => (FIRST_TRIAL..=FIRST_TRIAL + 1).contains(&step),
        "maker-retried-agent" => step == FIRST_TRIAL,
        _ => false,
    }
}

/// A template is whole or not there.
pub(crate) fn assert_nothing_half_made(house: House<'_>) {
    let entries = fs::read_dir(house.folder.join("t")).into_iter().flatten();
    for entry in entries.flatten() {
        let folder = entry.path();
        let mut files: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        files.sort();
        assert_eq!(files, ["header", "memory", "state"], "{}", folder.display());
    }
}
