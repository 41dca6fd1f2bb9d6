// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A migration can be asked about, changed and cancelled at every step, also while nothing passes between the two sides.

use std::time::Instant;

use host_migrator::MigrationState;
use lacuna::control::{Command, TuningArguments};
use spec::stream::SectionKind;

use crate::every_step::STEPS;
use crate::lab::wire::stalled_for_ever;
use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, ends, skipped_without_kvm, status, tell, whole_pass,
};

#[test]
fn a_migration_is_cancelled_at_every_step_while_nothing_passes() {
    if skipped_without_kvm("bare, cancel at every step") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let migration = Migration::on_one_connection();
    // Until the hand-over the guest can still be kept.
    for step in STEPS
        .into_iter()
        .take_while(|step| *step != SectionKind::HandOver)
    {
        let name: &'static str = format!("to-{step:?}").leak();
        let (destination, uri) = lab.receiving(name, true);
        let (uri, is_stalled) = stalled_for_ever(&uri, step);
        migration.begin(&source, &uri);
        is_stalled
            .recv_timeout(PATIENCE)
            .expect("the step is reached");
        let timed = |what: &mut dyn FnMut()| {
            let began = Instant::now();
            what();
            began.elapsed()
        };
        let asked = timed(&mut || {
            let state = status(&source).migration.status;
            assert!(!state.is_over(), "{step:?}: {state:?}");
        });
        let tuning = TuningArguments {
            downtime_limit: Some(1000),
            ..TuningArguments::default()
        };
        let set = timed(&mut || tell(&source, &Command::MigrateSetParameters(tuning)));
        let cancelled = timed(&mut || {
            tell(&source, &Command::MigrateCancel);
            ends(&mut source, MigrationState::Cancelled);
        });
        println!("{step:?}: status {asked:.1?}, set {set:.1?}, cancelled after {cancelled:.1?}");
        whole_pass(&mut source);
        drop(destination);
    }
    lab.move_whole(&Migration::default(), &mut source, "at-last");
}
