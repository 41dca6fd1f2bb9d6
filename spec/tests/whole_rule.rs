// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! With the whole rule no property is broken in any state, in any setup of the catalogue.

use spec_model::{Migration, Rule, catalogue};

#[test]
fn no_order_of_events_breaks_the_whole_rule() {
    for (name, setup) in catalogue::whole() {
        let rule = Rule::WHOLE;
        let found = Migration { setup, rule }.exhaust();
        println!("{name}: {} states, {} deep", found.states, found.depth);
        assert_eq!(found.broken, Vec::<&str>::new(), "{name}");
        assert!(found.succeeds, "{name}: no guest arrives");
    }
}
