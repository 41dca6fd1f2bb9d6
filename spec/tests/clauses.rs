// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each clause of the rule is needed: without it the model finds a way to lose a page, and with it none.

use spec_model::device::DeviceAction::{Answer, Restart, TakeBuffer, TakeFrame};
use spec_model::guest::GuestAction::{
    AgentHears, AgentLooks, AgentSends, Free, Hint, ReadCommand, Release, Report, Take, Write,
};
use spec_model::host::HostAction::{
    Abandon, Begin, Claim, ClearLog, ClearLogOf, Commit, DiscardLate, EndRound, Fail, Flush,
    HandOver, HarvestBackEnd, HarvestInBackground, HarvestOwnWrites, Lend, NoticeBreak, Pause,
    PutBack, ReadLog, ReadLogEarly, Send, StartLogging, Stray, TakeBack,
};
use spec_model::network::NetworkAction::{Break, Clear, Cut, Deliver, Forget, Hear, Lose};
use spec_model::operator::OperatorAction::{ContinueDestination, EndSource, ResumeSource};
use spec_model::pages::Page;
use spec_model::state::Action::{
    self, BackEndLogs, BackEndWrites, Device, Guest, Host, Network, Operator, RingIsEmptied,
    VmmWrites,
};
use spec_model::{Clause, Migration, Rule, Setup, catalogue};

const A: Page = Page::A;
const B: Page = Page::B;

/// Checks that the clause's story has `actions` in this order, and that the whole rule has no story.
fn assert_needed(clause: Clause, actions: &[Action]) {
    let case = catalogue::without(clause);
    let found = case.migration.look_for_story(case.property);
    let story = found
        .story
        .unwrap_or_else(|| panic!("no story in {} states", found.states));
    assert!(
        story.tells(actions),
        "{clause}: {actions:?} is not what happens in\n{story}"
    );

    let rule = Rule::WHOLE;
    let whole = Migration {
        rule,
        ..case.migration
    }
    .exhaust();
    assert_eq!(whole.broken, Vec::<&str>::new(), "{clause}");
    assert!(whole.succeeds, "{clause}");
}

#[test]
fn clause_1_a_page_written_before_it_is_armed_is_lost() {
    assert_needed(
        Clause::ArmFirst,
        &[
            Device(Answer),
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Host(StartLogging),
            Host(Claim(A)),
            Host(ReadLog),
        ],
    );
}

#[test]
fn clause_1_a_page_armed_after_the_request_loses_a_write_before_its_hint() {
    assert_needed(
        Clause::ArmedWhenAsked,
        &[
            Host(StartLogging),
            Device(Answer),
            Guest(Hint(A)),
            Guest(Take(A)),
            Host(ClearLogOf(A)),
            Device(TakeBuffer),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn clause_1_a_page_sent_before_it_is_armed_is_stale() {
    assert_needed(
        Clause::ArmBeforeCopy,
        &[
            Host(StartLogging),
            Host(Send(A, 0)),
            Guest(Write(A)),
            Host(ClearLogOf(A)),
            Host(ReadLog),
        ],
    );
}

#[test]
fn clause_2_a_hint_that_clears_the_log_loses_the_write_after_it() {
    assert_needed(
        Clause::KeepLog,
        &[
            Host(StartLogging),
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Device(Answer),
            Host(ReadLog),
        ],
    );
}

#[test]
fn clause_2_a_hint_that_answers_an_early_page_loses_the_write_after_it() {
    assert_needed(
        Clause::KeepEarly,
        &[
            Host(StartLogging),
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Host(ReadLogEarly),
            Host(ClearLog),
            Host(Claim(A)),
            Host(ReadLog),
        ],
    );
}

#[test]
fn clause_2_a_late_hint_that_discards_an_early_page_loses_the_write_after_it() {
    assert_needed(
        Clause::SpareEarlyCopies,
        &[
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Host(ReadLogEarly),
            Host(ClearLog),
            Host(Send(A, 0)),
            Host(DiscardLate(A)),
            Host(ReadLog),
        ],
    );
}

#[test]
fn clause_2_a_hint_that_discards_memory_destroys_the_write_after_it() {
    assert_needed(
        Clause::KeepMemory,
        &[
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Device(TakeBuffer),
        ],
    );
}

#[test]
fn clause_3_a_hint_that_outlives_the_harvest_loses_what_it_brought() {
    let hinted_and_taken_again = [Guest(Hint(A)), Guest(Release(A)), Guest(Take(A))];
    let used_late = [Host(ReadLog), Host(ClearLog), Host(Begin), Host(Claim(A))];
    let story = [&hinted_and_taken_again[..], &used_late].concat();
    assert_needed(Clause::CloseBeforeHarvest, &story);
    assert_needed(Clause::ForgetOldHints, &story);
}

#[test]
fn clause_3_an_old_hint_in_a_new_epoch_loses_what_was_written_between() {
    assert_needed(
        Clause::CheckCommandId,
        &[
            Device(Answer),
            Guest(ReadCommand),
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Host(ReadLog),
            Host(Begin),
            Device(Answer),
            Device(TakeBuffer),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn clause_3_a_map_made_in_one_epoch_loses_a_write_in_the_next() {
    assert_needed(
        Clause::TagWhenLookedAt,
        &[
            Guest(AgentHears),
            Guest(AgentLooks(A)),
            Guest(Take(A)),
            Host(ReadLog),
            Device(Answer),
            Guest(AgentSends),
            Device(TakeFrame),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn clause_3_a_bit_read_before_a_hint_and_cleared_after_it_loses_the_write_between() {
    assert_needed(
        Clause::CompleteHarvest,
        &[
            Host(ReadLog),
            Host(Begin),
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Host(ClearLog),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn clause_3_a_hole_that_outlives_the_harvest_loses_what_it_brought() {
    assert_needed(
        Clause::ForgetHoles,
        &[
            Guest(Free(A)),
            Host(Begin),
            Guest(Take(A)),
            Host(HarvestInBackground),
            Host(ReadLog),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn clause_3_a_late_hint_that_discards_after_the_harvest_loses_what_it_brought() {
    assert_needed(
        Clause::DiscardBeforeHarvest,
        &[
            Guest(Hint(A)),
            Guest(Take(A)),
            Host(Send(A, 0)),
            Host(ReadLog),
            Host(Send(A, 0)),
            Host(DiscardLate(A)),
        ],
    );
}

#[test]
fn a_record_that_waits_through_a_harvest_makes_newer_content_zero() {
    assert_needed(
        Clause::FlushTables,
        &[
            Host(Send(A, 0)),
            Guest(Free(A)),
            Host(Send(A, 0)),
            Host(HarvestInBackground),
            Guest(Take(A)),
            Host(ReadLog),
            Host(Send(A, 0)),
            Host(Flush),
        ],
    );
}

#[test]
fn clause_4_what_a_back_end_writes_is_lost_without_its_log() {
    assert_needed(
        Clause::MergeBackEnd,
        &[
            Host(Send(A, 0)),
            BackEndWrites(A),
            Host(HarvestBackEnd),
            Host(Pause),
        ],
    );
}

#[test]
fn clause_4_what_the_vmm_writes_is_lost_without_its_log() {
    assert_needed(
        Clause::MergeOwnWrites,
        &[
            Host(Send(A, 0)),
            VmmWrites(A),
            Host(HarvestOwnWrites),
            Host(Pause),
        ],
    );
}

#[test]
fn clause_4_memory_discarded_after_it_was_sent_is_stale() {
    assert_needed(
        Clause::LogDiscards,
        &[
            Host(Send(A, 0)),
            Guest(Report(A)),
            Host(ReadLog),
            Host(Pause),
        ],
    );
}

#[test]
fn clause_4_a_page_that_leaves_a_ring_before_a_harvest_and_is_not_kept_is_lost() {
    assert_needed(
        Clause::KeepTaken,
        &[
            Host(Send(A, 0)),
            Guest(Write(A)),
            RingIsEmptied,
            Host(ReadLog),
        ],
    );
}

#[test]
fn clause_4_a_write_without_room_in_the_ring_is_lost() {
    assert_needed(
        Clause::WaitWhenFull,
        &[
            Host(StartLogging),
            Guest(Write(B)),
            Guest(Write(A)),
            Host(ReadLog),
        ],
    );
}

#[test]
fn clause_3_a_ring_that_is_reset_after_its_pages_are_sent_loses_the_write_between() {
    let case = catalogue::without(Clause::CompleteHarvest);
    let setup = Setup {
        ring: 1,
        ..case.migration.setup
    };
    let ring = Migration {
        setup,
        ..case.migration
    };
    let story = ring.look_for_story(case.property).story.expect("a story");
    assert!(story.tells(&[Host(ReadLog), Host(ClearLog)]), "{story}");
}

#[test]
fn clause_5_a_hint_used_after_the_last_harvest_loses_what_it_brought() {
    assert_needed(
        Clause::NoHintAfterPause,
        &[
            Guest(Hint(A)),
            Guest(Release(A)),
            Guest(Take(A)),
            Host(Pause),
            Host(ReadLog),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn clause_5_a_guest_that_is_not_told_never_gets_its_pages_back() {
    assert_needed(
        Clause::SayDone,
        &[Guest(Hint(A)), Host(HandOver), Host(PutBack)],
    );
}

#[test]
fn clause_5_logs_that_nobody_stops_go_on() {
    assert_needed(Clause::StopLogging, &[Host(HandOver), Host(PutBack)]);
}

#[test]
fn clause_6_a_page_claimed_by_a_migration_that_failed_is_missing_at_the_next() {
    assert_needed(
        Clause::StartFromAllDirty,
        &[
            Host(Claim(A)),
            Host(Fail),
            Host(PutBack),
            Host(StartLogging),
            Host(EndRound),
            Host(HandOver),
        ],
    );
}

#[test]
fn clause_6_a_guest_paused_for_a_migration_that_failed_never_runs_again() {
    assert_needed(
        Clause::ResumeOnFailure,
        &[Host(Pause), Host(Fail), Host(PutBack), Host(Abandon)],
    );
}

#[test]
fn clause_7_a_page_sent_before_it_was_hinted_shows_old_content() {
    assert_needed(
        Clause::DiscardAtDestination,
        &[
            Host(Send(A, 0)),
            Guest(Write(A)),
            Guest(Free(A)),
            Host(ReadLog),
            Guest(Hint(A)),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn clause_8_the_other_half_of_a_page_is_lost() {
    assert_needed(
        Clause::RoundInward,
        &[Guest(Hint(A)), Device(TakeBuffer), Host(Claim(B))],
    );
}

#[test]
fn a_new_device_that_takes_hints_queued_for_the_old_one_loses_a_write() {
    assert_needed(
        Clause::FreshIds,
        &[
            Guest(ReadCommand),
            Guest(Hint(A)),
            Device(Restart),
            Guest(Take(A)),
            Host(Fail),
            Host(StartLogging),
            Device(Answer),
            Device(TakeBuffer),
            Device(TakeBuffer),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn without_done_from_the_next_device_hinted_pages_never_come_back() {
    assert_needed(
        Clause::SayDoneAtStart,
        &[Guest(Hint(A)), Device(Restart), Host(Fail), Host(PutBack)],
    );
}

#[test]
fn a_claim_after_the_copy_loses_the_write_between() {
    assert_needed(
        Clause::ClaimBeforeCopy,
        &[
            Host(Send(A, 0)),
            Guest(Write(A)),
            Host(HarvestInBackground),
            Host(ReadLog),
            Host(Claim(A)),
        ],
    );
}

#[test]
fn two_channels_can_swap_two_versions() {
    assert_needed(
        Clause::DrainChannels,
        &[
            Host(Send(A, 0)),
            Guest(Write(A)),
            Host(ReadLog),
            Host(Send(A, 1)),
            Network(Deliver(1)),
            Network(Deliver(0)),
        ],
    );
}

#[test]
fn what_a_dead_channel_carried_is_missing_at_the_destination() {
    assert_needed(
        Clause::NoticeDeadChannels,
        &[Host(Send(A, 0)), Network(Cut(0)), Host(Pause), Host(Commit)],
    );
}

#[test]
fn a_write_that_a_back_end_logs_after_the_last_harvest_is_lost() {
    let case = catalogue::without(Clause::DrainBackEnds);
    let story = case.migration.look_for_story(case.property).story.unwrap();
    assert!(!story.actions.contains(&BackEndLogs), "{story}");
    assert_needed(
        Clause::DrainBackEnds,
        &[
            Host(Send(A, 0)),
            BackEndWrites(A),
            Host(Pause),
            Host(HarvestBackEnd),
        ],
    );
}

#[test]
fn a_source_that_takes_back_a_guest_it_gave_away_runs_it_twice() {
    assert_needed(
        Clause::TwoPhaseHandOver,
        &[
            Host(HandOver),
            Network(Hear),
            Network(Break),
            Host(NoticeBreak),
        ],
    );
}

#[test]
fn a_hand_over_that_was_taken_back_and_is_sent_after_all_runs_the_guest_twice() {
    assert_needed(Clause::NeverSendVoid, &[Host(TakeBack), Network(Hear)]);
}

#[test]
fn after_a_lost_hand_over_no_host_runs_the_guest_until_an_operator_decides() {
    assert_needed(
        Clause::OperatorDecides,
        &[Host(HandOver), Network(Break), Host(NoticeBreak)],
    );
}

#[test]
fn a_destination_that_forgets_the_guest_loses_it_with_the_source() {
    assert_needed(
        Clause::KeepHeld,
        &[Host(HandOver), Network(Break), Network(Lose)],
    );
    let case = catalogue::without(Clause::KeepHeld);
    let story = case.migration.look_for_story(case.property).story.unwrap();
    for lost in [Network(Forget), Operator(EndSource)] {
        assert!(story.actions.contains(&lost), "{story}");
    }
}

#[test]
fn an_operator_who_decides_without_looking_runs_the_guest_twice() {
    assert_needed(Clause::LookFirst, &[Host(Pause)]);
    let case = catalogue::without(Clause::LookFirst);
    let story = case.migration.look_for_story(case.property).story.unwrap();
    let decided = [Operator(ResumeSource), Operator(ContinueDestination)];
    assert!(
        decided.iter().any(|action| story.actions.contains(action)),
        "{story}"
    );
}

#[test]
fn a_destination_that_clears_lent_memory_destroys_a_guest_that_runs() {
    assert_needed(Clause::KeepLent, &[Host(Lend), Network(Clear(A))]);
}

#[test]
fn a_device_of_the_source_that_still_writes_destroys_a_guest_that_has_gone() {
    assert_needed(
        Clause::LetGo,
        &[Host(Lend), Host(Pause), Host(HandOver), Host(Stray(A))],
    );
}

#[test]
fn a_destination_that_takes_lent_memory_for_its_own_destroys_a_guest_it_did_not_get() {
    assert_needed(
        Clause::GiveLentBack,
        &[
            Host(Lend),
            Host(Fail),
            Host(StartLogging),
            Network(Clear(A)),
        ],
    );
}

#[test]
fn every_clause_of_the_document_has_a_switch() {
    let numbers: Vec<_> = Clause::ALL
        .iter()
        .filter_map(|clause| clause.number())
        .collect();
    for number in 1..=8 {
        assert!(numbers.contains(&number), "clause {number}");
    }
}
