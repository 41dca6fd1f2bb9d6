// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What other hypervisors do, and how that loses pages.

use spec_model::catalogue;
use spec_model::device::DeviceAction::TakeBuffer;
use spec_model::guest::GuestAction::{Hint, Release, Take};
use spec_model::host::HostAction::{Claim, HarvestInBackground, Pause, ReadLog};
use spec_model::pages::Page;
use spec_model::state::Action::{self, Device, Guest, Host};
use spec_model::story::Story;

const A: Page = Page::A;

fn story_of(name: &str) -> Option<Story> {
    let case = catalogue::others()
        .into_iter()
        .find(|case| case.name == name)
        .unwrap_or_else(|| panic!("no case is called {name}"));
    case.migration.look_for_story(case.property).story
}

#[track_caller]
fn assert_goes_wrong(name: &str, actions: &[Action]) {
    let story = story_of(name).unwrap_or_else(|| panic!("no story: {name}"));
    assert!(
        story.tells(actions),
        "{actions:?} is not what happens in\n{story}"
    );
}

#[test]
fn qemu_loses_a_page_that_is_taken_again_before_its_hint_is() {
    let name = "QEMU: a hint clears KVM's log";
    let taken_again = [Guest(Hint(A)), Guest(Release(A)), Guest(Take(A))];
    let lost = [Device(TakeBuffer), Host(Claim(A)), Host(ReadLog)];
    assert_goes_wrong(name, &[taken_again, lost].concat());
}

#[test]
fn firecracker_destroys_a_page_that_is_taken_again_before_its_hint_is() {
    let name = "Firecracker: a hint discards the guest's memory";
    assert_goes_wrong(name, &[Guest(Hint(A)), Guest(Take(A)), Device(TakeBuffer)]);
}

#[test]
fn a_hint_after_the_pause_loses_what_the_last_harvest_brought() {
    let name = "a hint is taken after the pause";
    assert_goes_wrong(
        name,
        &[Guest(Take(A)), Host(Pause), Host(ReadLog), Host(Claim(A))],
    );
}

#[test]
fn a_background_harvest_with_the_epoch_open_loses_what_it_brought() {
    let name = "a background harvest leaves the epoch open";
    assert_goes_wrong(
        name,
        &[
            Guest(Take(A)),
            Host(HarvestInBackground),
            Host(ReadLog),
            Host(Claim(A)),
        ],
    );
}
