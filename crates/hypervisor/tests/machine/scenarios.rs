//! What is true of every machine.

use crate::{
    Named, clones::*, ends::*, failures::*, plugging::*, running::*, templates::*, walls::*,
};

macro_rules! scenarios {
    ($list:ident: $($name:ident),+ $(,)?) => {
        pub(crate) const $list: &[Named] =
            &[$((stringify!($name), |stage| Box::pin($name(stage)))),+];
    };
}

scenarios![ALL:
    a_guest_powers_off,
    a_guest_restarts_itself,
    a_panic_is_told,
    kill_and_drop_end_the_machine,
    a_foreign_kill_is_told,
    the_jail_is_tight,
    a_given_network_namespace_is_entered,
    a_paused_guest_stands_still,
    disks_come_and_go,
    network_cards_come_and_go,
    a_flooded_console_stays_small,
    several_processors_run,
    the_machine_dies_with_its_monitor,
    what_is_missing_is_named,
    a_failed_start_says_why,
    a_silent_start_has_an_end,
    a_weak_host_is_refused,
    clones_go_on_where_the_machine_was_saved,
    recipes_are_stable_and_tell_machines_apart,
    a_clone_becomes_larger,
    broken_templates_are_refused,
    a_kill_leaves_nothing_of_a_restore,
    a_kill_leaves_nothing_of_a_snapshot,
];

scenarios![NEWEST:
    a_guest_powers_off,
    the_jail_is_tight,
    disks_come_and_go,
    network_cards_come_and_go,
    several_processors_run,
    clones_go_on_where_the_machine_was_saved,
    a_clone_becomes_larger,
    broken_templates_are_refused,
];
