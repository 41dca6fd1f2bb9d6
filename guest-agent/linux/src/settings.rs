// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel does with free pages: whether their content matters.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use spec::agent::{Settings, VERSION};

use crate::memory;
use crate::preparation::Preparation;

/// What the host is to know of this kernel.
pub fn detect(preparation: Preparation) -> Settings {
    let command_line = fs::read_to_string("/proc/cmdline");
    let mut flags = match &command_line {
        Ok(line) => of_command_line(line) | of_log(&kernel_log(), line),
        Err(_) => Settings::UNKNOWN,
    };
    if preparation.drop_caches {
        flags |= Settings::DROPS_CACHES;
    }
    if preparation.compact {
        flags |= Settings::COMPACTS;
    }
    let pages = memory::zones()
        .ok()
        .and_then(|zones| zones.last().map(|zone| zone.end()));
    Settings {
        version: VERSION,
        page_size: rustix::param::page_size() as u32,
        pages: pages.unwrap_or(0),
        flags,
    }
}

/// Page poisoning is off unless the command line asks for it, whatever the kernel was built with.
fn of_command_line(line: &str) -> u32 {
    match switch(line, "page_poison") {
        Some(true) => Settings::POISON,
        _ => 0,
    }
}

/// Zeroing is on by the command line or by the way the kernel was built; what came of both is in its log:
/// `mem auto-init: stack:off, heap alloc:on, heap free:off`. The log forgets its first lines in time; then only
/// the command line is left.
fn of_log(log: &str, line: &str) -> u32 {
    let found = log.lines().find(|line| line.contains("mem auto-init:"));
    let is_on = |in_log: &str, parameter: &str| match found {
        Some(found) => found.contains(in_log),
        None => switch(line, parameter) == Some(true),
    };
    let mut flags = 0;
    if is_on("heap alloc:on", "init_on_alloc") {
        flags |= Settings::INIT_ON_ALLOC;
    }
    if is_on("heap free:on", "init_on_free") {
        flags |= Settings::INIT_ON_FREE;
    }
    flags
}

/// What the last `name=value` of the command line says that the kernel understands. It leaves those alone that it
/// does not, takes `-` for `_` in names, and leaves what follows `--` to the first process.
fn switch(line: &str, name: &str) -> Option<bool> {
    words(line)
        .iter()
        .take_while(|word| *word != "--")
        .filter_map(|word| word.split_once('='))
        .filter(|(parameter, _)| parameter.replace('-', "_") == name)
        .filter_map(|(_, value)| truth(value))
        .last()
}

/// The words of the command line. Quotes keep spaces together and belong to no word.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match words.last_mut() {
            _ if c == '"' => quoted = !quoted,
            Some(word) if quoted || !c.is_ascii_whitespace() => word.push(c),
            _ => words.push(String::new()),
        }
    }
    words
}

/// A truth value, as the kernel reads it (`kstrtobool`): its first letters count.
fn truth(value: &str) -> Option<bool> {
    let mut letters = value.chars().map(|c| c.to_ascii_lowercase());
    match (letters.next()?, letters.next()) {
        ('1' | 'y' | 't' | 'e', _) | ('o', Some('n')) => Some(true),
        ('0' | 'n' | 'f' | 'd', _) | ('o', Some('f')) => Some(false),
        _ => None,
    }
}

/// What the kernel's log still has. Each read gives one record, until there is none.
fn kernel_log() -> String {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open("/dev/kmsg");
    let Ok(mut file) = file else {
        return String::new();
    };
    let (mut log, mut record) = (String::new(), [0; 8192]);
    loop {
        match file.read(&mut record) {
            Ok(length) if length != 0 => log.push_str(&String::from_utf8_lossy(&record[..length])),
            // Records were overwritten while we read: the next read goes on after them.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            _ => return log,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_switch_of_the_command_line_counts_in_all_its_spellings() {
        for (line, flags) in [
            ("quiet page_poison=1", Settings::POISON),
            ("page_poison=on", Settings::POISON),
            ("page_poison=Y quiet", Settings::POISON),
            ("page-poison=1", Settings::POISON),
            ("quiet \"page_poison=1\"", Settings::POISON),
            ("page-poison=\"on\"", Settings::POISON),
            ("name=\"a page_poison=1\"", 0),
            ("page_poison=1 page_poison=off", 0),
            ("page_poison=1 page-poison=off", 0),
            ("page_poison=1 page_poison=maybe", Settings::POISON),
            ("page_poison=1 page_poison", Settings::POISON),
            ("quiet -- page_poison=1", 0),
            ("page_poison=0", 0),
            ("page_poison", 0),
            ("xpage_poison=1", 0),
            ("", 0),
        ] {
            assert_eq!(of_command_line(line), flags, "{line}");
        }
    }

    #[test]
    fn what_the_kernel_logged_of_zeroing_counts_before_what_it_was_told() {
        let log = "6,1,0,-;mem auto-init: stack:off, heap alloc:on, heap free:off\n";
        assert_eq!(of_log(log, "init_on_free=1"), Settings::INIT_ON_ALLOC);
        assert_eq!(of_log("", "init_on_free=1"), Settings::INIT_ON_FREE);
        assert_eq!(of_log("", "init-on-alloc=1"), Settings::INIT_ON_ALLOC);
        assert_eq!(of_log("", "init_on_alloc=0"), 0);
    }

    #[test]
    fn this_machine_has_settings() {
        let settings = detect(Preparation {
            compact: true,
            ..Preparation::default()
        });
        assert_ne!(settings.pages, 0);
        assert_ne!(settings.flags & Settings::COMPACTS, 0);
        assert_eq!(settings.flags & Settings::DROPS_CACHES, 0);
    }
}
