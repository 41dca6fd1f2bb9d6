// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The example of a VMM with a migration loop of its own.
#![allow(clippy::unwrap_used)]

#[path = "../examples/own_loop.rs"]
#[allow(dead_code)]
mod own_loop;

#[test]
fn a_loop_that_takes_only_the_rule_loses_no_page() {
    for _ in 0..10 {
        assert_eq!(own_loop::run().unwrap(), 0);
    }
}
