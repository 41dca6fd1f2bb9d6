// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrations over TLS, by the command: exact with every number of channels, and a peer that does not fit, dies or is cut off leaves the
//! guest at the source.

use std::ffi::OsString;
use std::path::Path;

use host_migrator::report::stats::MigrationState;
use host_migrator::wire::TlsFiles;
use lacuna::certificates::{self, Certificates};
use lacuna::compare::Host;
use lacuna::control::HintMode;
use lacuna::machine::MachineState;

use crate::lab::wire::{cut_after, cut_channel_after};
use crate::lab::{
    BareGuest, Lab, Migration, ends, hinted, lacuna, release_and_check, skipped_without_kvm,
    status, until_round, whole_pass,
};

/// What the destination's certificate is for.
const NAME: &str = "destination.example";

fn made(folder: &Path) -> Certificates {
    certificates::make(folder, &[NAME.to_owned()], 1).expect("certificates")
}

fn flags(files: &TlsFiles) -> [OsString; 6] {
    [
        "--tls-certificate".into(),
        files.certificate.clone().into(),
        "--tls-key".into(),
        files.key.clone().into(),
        "--tls-ca".into(),
        files.ca.clone().into(),
    ]
}

/// A migration whose source shows `files`.
fn with(files: &TlsFiles) -> Migration {
    Migration {
        tls: Some((files.clone(), Some(NAME))),
        ..Migration::default()
    }
}

fn runs_on(source: &mut Host) {
    assert_eq!(status(source).machine, MachineState::Running);
    assert_eq!(whole_pass(source).wrong, 0);
}

/// The next migration with the right certificates is exact.
fn next_is_exact(lab: &Lab, source: &mut Host, tls: &Certificates) {
    let (mut destination, uri) = lab.receiving_with("last", &flags(&tls.destination));
    let (report, verdict) = (with(&tls.source).complete(source, &mut destination, &uri))
        .expect("the migration completes");
    lab.assert_right(&verdict, "the last");
    assert!(report.tls);
    release_and_check(&mut destination);
}

#[test]
fn a_guest_that_writes_arrives_whole_over_tls_with_any_number_of_channels() {
    if skipped_without_kvm("bare, TLS") {
        return;
    }
    for (channels, hints) in [
        (1, HintMode::On),
        (2, HintMode::Off),
        (2, HintMode::On),
        (8, HintMode::On),
        (128, HintMode::Off),
    ] {
        let lab = Lab::new(BareGuest {
            dirty_rate: "16M",
            ..BareGuest::default()
        });
        let tls = made(&lab.folder().join("tls"));
        let mut source = lab.running("source");
        let (mut destination, uri) = lab.receiving_with("destination", &flags(&tls.destination));
        assert!(status(&destination).incoming_tls);
        let migration = Migration {
            multifd_channels: Some(channels),
            hints,
            ..with(&tls.source)
        };
        let (report, verdict) = migration
            .complete(&mut source, &mut destination, &uri)
            .expect("the migration completes");
        assert!(report.tls && status(&source).migration.tls);
        assert_eq!(report.channels, channels);
        assert_eq!(hinted(&report) > 0, hints == HintMode::On);
        assert!(verdict.pages_compared >= (256 << 20) / 4096);
        lab.assert_right(&verdict, format_args!("{channels} channels, hints {hints}"));
        release_and_check(&mut destination);
    }
}

#[test]
fn a_migration_that_does_not_fit_is_refused_with_the_reason_and_the_guest_runs_on() {
    if skipped_without_kvm("bare, TLS that does not fit") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let tls = made(&lab.folder().join("tls"));
    let hostile = made(&lab.folder().join("hostile"));
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving_with("destination", &flags(&tls.destination));
    let refused =
        |migration: &Migration, uri: &str| migration.try_to_begin(&source, uri).unwrap_err();
    let by_address = Migration {
        tls: Some((tls.source.clone(), None)),
        ..Migration::default()
    };
    let said = refused(&by_address, &uri);
    assert!(
        said.contains("is for destination.example, not for 127.0.0.1"),
        "{said}"
    );
    assert!(said.contains("--tls-hostname"), "{said}");
    let impostor = TlsFiles {
        ca: tls.source.ca.clone(),
        ..hostile.source.clone()
    };
    let said = refused(&with(&impostor), &uri);
    assert!(said.contains("refuses the TLS connection"), "{said}");
    let said = refused(&with(&hostile.source), &uri);
    assert!(
        said.contains("not signed by a CA that this side trusts"),
        "{said}"
    );
    let nothing = TlsFiles {
        key: lab.folder().join("nothing.pem"),
        ..tls.source.clone()
    };
    let said = refused(&with(&nothing), &uri);
    assert!(said.contains("nothing.pem"), "{said}");
    // Without TLS the destination says nothing for a while, and then that it speaks TLS.
    Migration::default().begin(&source, &uri);
    let said = ends(&mut source, MigrationState::Failed)
        .error_desc
        .unwrap_or_default();
    assert!(said.contains("the other side speaks TLS"), "{said}");
    runs_on(&mut source);
    // The destination has waited on.
    let (_, verdict) = (with(&tls.source).complete(&mut source, &mut destination, &uri))
        .expect("the migration completes");
    lab.assert_right(&verdict, "after the refusals");
    release_and_check(&mut destination);
}

#[test]
fn a_tls_source_is_told_by_a_plain_destination_that_it_speaks_no_tls() {
    if skipped_without_kvm("bare, TLS on one side") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let tls = made(&lab.folder().join("tls"));
    let mut source = lab.running("source");
    let (_destination, uri) = lab.receiving("plain", true);
    let said = with(&tls.source).try_to_begin(&source, &uri).unwrap_err();
    assert!(said.contains("the other side does not speak TLS"), "{said}");
    runs_on(&mut source);
    next_is_exact(&lab, &mut source, &tls);
}

#[test]
fn a_killed_destination_and_a_connection_cut_anywhere_leave_the_guest_at_the_source() {
    if skipped_without_kvm("bare, TLS cut") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let tls = made(&lab.folder().join("tls"));
    let mut source = lab.running("source");
    let slow = Migration {
        max_bandwidth: Some(16 << 20),
        downtime_limit: 10,
        ..with(&tls.source)
    };
    let (mut killed, uri) = lab.receiving_with("killed", &flags(&tls.destination));
    slow.begin(&source, &uri);
    until_round(&mut source, 1);
    killed.machine.kill();
    let ended = ends(&mut source, MigrationState::Failed);
    assert!(ended.error_desc.is_some(), "{ended:?}");
    runs_on(&mut source);
    for (name, limit, channels) in [
        ("hello", 10, 1),
        ("pages", 200_000, 1),
        ("late", 30 << 20, 1),
        ("joining", 100, 2),
        ("channel", 200_000, 2),
        ("middle", 5 << 20, 2),
    ] {
        let (_destination, uri) = lab.receiving_with(name, &flags(&tls.destination));
        let migration = Migration {
            multifd_channels: Some(channels),
            ..with(&tls.source)
        };
        let cut = match channels {
            1 => cut_after(&uri, limit),
            _ => cut_channel_after(&uri, limit),
        };
        // A handshake that is cut is refused at once.
        if migration.try_to_begin(&source, &cut).is_ok() {
            ends(&mut source, MigrationState::Failed);
        }
        runs_on(&mut source);
    }
    next_is_exact(&lab, &mut source, &tls);
}

#[test]
fn the_command_makes_certificates_that_send_and_receive_take() {
    if skipped_without_kvm("bare, TLS by the command") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let folder = lab.folder().join("made");
    let path = |name: &str| folder.join(name).display().to_string();
    let names = format!("{NAME},127.0.0.1");
    let made = lacuna(&["generate", "certificates", &path(""), "--names", &names]);
    assert!(made.status.success(), "{made:?}");
    let files = |side: &str| TlsFiles {
        certificate: path(&format!("{side}.pem")).into(),
        key: path(&format!("{side}-key.pem")).into(),
        ca: path("ca.pem").into(),
    };
    let source = lab.running("source");
    let (mut destination, uri) = lab.receiving_with("destination", &flags(&files("destination")));
    let control = source.control.display().to_string();
    let [certificate, key, ca] = ["source.pem", "source-key.pem", "ca.pem"].map(path);
    let mut args = vec!["send", uri.as_str(), "--control", &control, "--json"];
    args.extend(["--tls-certificate", &certificate, "--tls-key", &key]);
    let without_ca = lacuna(&args);
    assert_eq!(without_ca.status.code(), Some(2), "{without_ca:?}");
    args.extend(["--tls-ca", &ca]);
    let sent = lacuna(&args);
    assert!(sent.status.success(), "{sent:?}");
    let report: serde_json::Value = serde_json::from_slice(&sent.stdout).expect("JSON");
    assert_eq!(report["tls"], true);
    // A guest that was handed over is compared by its stamps here.
    release_and_check(&mut destination);
    assert_eq!(status(&source).machine, MachineState::HandedOver);
    drop(source);
}
