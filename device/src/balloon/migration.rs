// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Saving the balloon's state, and going on from it at the destination.

use super::Balloon;
use super::device_state::{DeviceState, StateError};

impl Balloon {
    /// The state for a migration. The device must be suspended.
    pub fn save(&self) -> DeviceState {
        let config = self.guest.config.config();
        DeviceState {
            num_pages: config.num_pages,
            wanted: self.target.wanted(),
            actual: config.actual,
            poison_val: config.poison_val,
            command_id: self.hinting.command_id(),
            features: self.guest.own_features(),
            ballooned: self.ballooned().clone(),
        }
    }

    /// Goes on from `state`. The guest may hold hinted pages, so it is told DONE when it runs.
    ///
    /// # Errors
    /// [`StateError::Features`] if the guest uses features that this device does not offer, or other features than the front
    /// end has acknowledged.
    pub fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        let here = match self.guest.own_features() {
            0 => state.features & self.offered_features(),
            acknowledged => acknowledged,
        };
        if state.features != 0 && state.features != here {
            return Err(StateError::Features {
                taken: state.features,
                here,
            });
        }
        self.guest
            .set_features(self.guest.features() | state.features);
        self.target.restore(state.wanted, state.num_pages);
        self.guest.config.set_target(state.num_pages);
        self.guest
            .config
            .set_by_guest(state.actual, state.poison_val);
        self.hinting.restore(state.command_id);
        self.inflate.restore(state.ballooned);
        if self.guest.has_memory() {
            self.inflate.keep_only(self.guest.regions());
        }
        self.guest.config.tell_later();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spec::PageRange;
    use spec::balloon::feature;

    use super::*;
    use crate::balloon::options::Options;
    use crate::balloon::sparse_page_set::SparsePageSet;
    use crate::guest::state::FRONT_END_FEATURES;

    const TAKEN: u64 = 1 << feature::VERSION_1 | 1 << feature::STATS_VQ;

    fn balloon() -> Balloon {
        Balloon::new(Options::default(), Arc::default())
    }

    /// The state of a guest with `features` and two pages in its balloon.
    fn state(features: u64) -> DeviceState {
        let mut balloon = balloon();
        let mut pages = SparsePageSet::default();
        pages.insert(PageRange::new(7, 2).unwrap());
        balloon.inflate.restore(pages);
        balloon.set_target(9);
        DeviceState {
            features,
            ..balloon.save()
        }
    }

    #[test]
    fn a_state_is_taken_before_or_after_the_front_end_acknowledges_the_same_features() {
        let saved = state(TAKEN);
        let mut early = balloon();
        early.restore(saved.clone()).unwrap();
        early.acknowledge(TAKEN | FRONT_END_FEATURES);
        let mut late = balloon();
        late.acknowledge(TAKEN | FRONT_END_FEATURES);
        late.restore(saved.clone()).unwrap();
        for balloon in [&mut early, &mut late] {
            assert_eq!((balloon.ballooned().count(), balloon.target()), (2, 9));
            assert_eq!(balloon.save(), saved);
        }
    }

    #[test]
    fn a_state_with_features_that_are_not_offered_or_not_acknowledged_is_refused() {
        let reporting = TAKEN | 1 << feature::REPORTING;
        let refused = balloon().restore(state(reporting));
        let (taken, here) = (reporting, TAKEN);
        assert_eq!(refused, Err(StateError::Features { taken, here }));
        let mut balloon = balloon();
        balloon.acknowledge(TAKEN | 1 << feature::PAGE_POISON);
        assert!(balloon.restore(state(TAKEN)).is_err());
        assert!(balloon.ballooned().is_empty());
        balloon.restore(state(0)).unwrap();
    }
}
