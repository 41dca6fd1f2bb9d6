// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A destination with a different machine refuses the guest before its first page, and the guest runs on.

use host_migrator::report::stats::MigrationState;
use lacuna::machine::MachineState;

use crate::lab::{BareGuest, Lab, Migration, ends, skipped_without_kvm, status};

#[test]
fn a_destination_of_another_shape_says_what_differs_before_the_first_page() {
    if skipped_without_kvm("a destination of another shape") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    for (name, machine, difference) in [
        (
            "linux",
            &["--guest", "linux", "--memory", "256M"][..],
            "kind of guest: bare there, Linux here",
        ),
        (
            "vcpus",
            &["--memory", "256M", "--vcpus", "2"],
            "vCPUs: 1 there, 2 here",
        ),
    ] {
        let (_destination, uri) = lab.receiving_on(name, machine);
        Migration::default().begin(&source, &uri);
        let ended = ends(&mut source, MigrationState::Failed);
        let reason = ended.error_desc.unwrap_or_default();
        assert!(reason.contains(difference), "{reason}");
        assert_eq!(ended.ram.transferred, 0, "{name}");
        assert_eq!(status(&source).machine, MachineState::Running);
    }
    lab.move_whole(&Migration::default(), &mut source, "alike");
}
