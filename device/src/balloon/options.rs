// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a balloon is made with: the features that it offers beyond the usual ones.

use spec::balloon::{QueueNumbering, feature};
use vhost::vhost_user::message::VhostUserVirtioFeatures;

/// The features that are always offered. Statistics and hints always go together, so that the hint queue has the number 3
/// in both numberings if the guest uses both.
const ALWAYS: u64 = 1 << feature::VERSION_1
    | 1 << feature::STATS_VQ
    | 1 << feature::FREE_PAGE_HINT
    | 1 << feature::PAGE_POISON
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    | VhostUserVirtioFeatures::LOG_ALL.bits();

/// How a balloon numbers its queues, and which optional features it offers. None by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How queues get their numbers.
    pub numbering: QueueNumbering,
    /// Free page reporting: the guest reports memory that it does not use, which is then discarded.
    pub reporting: bool,
    /// The guest may take pages out of the balloon when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest tells the device before it reuses a page of the balloon.
    pub must_tell_host: bool,
}

impl Options {
    /// The feature bits to offer.
    pub fn features(self) -> u64 {
        let optional = [
            (self.reporting, feature::REPORTING),
            (self.deflate_on_oom, feature::DEFLATE_ON_OOM),
            (self.must_tell_host, feature::MUST_TELL_HOST),
        ];
        optional
            .into_iter()
            .filter(|(offered, _)| *offered)
            .fold(ALWAYS, |features, (_, bit)| features | 1 << bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optional_feature_is_offered_only_when_asked_for() {
        let optional =
            1 << feature::REPORTING | 1 << feature::DEFLATE_ON_OOM | 1 << feature::MUST_TELL_HOST;
        assert_eq!(Options::default().features() & optional, 0);
        let all = Options {
            reporting: true,
            deflate_on_oom: true,
            must_tell_host: true,
            ..Options::default()
        };
        assert_eq!(all.features(), Options::default().features() | optional);
        assert_eq!(
            all.features() & 1 << 6,
            0,
            "upstream gives it another meaning"
        );
    }
}
