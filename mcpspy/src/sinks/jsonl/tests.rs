use std::os::unix::fs::{MetadataExt, symlink};

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::sinks::samples;

const OPTIONS: JsonlOptions =
    JsonlOptions { payload: Payload::Full, max_size: None, keep: 3, owner: None };

fn run() -> RunInfo {
    RunInfo {
        run_id: "r".into(),
        host: "h".into(),
        host_given: false,
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    }
}

fn message(seq: u64) -> Event {
    samples::wrap(seq, 0, samples::call())
}

/// The numbers of the events in a file, each line of which is whole.
fn seqs(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    let seq = |line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap();
    text.lines().map(seq).collect()
}

#[test]
fn a_file_is_private_appended_to_and_only_ours_changes_hands() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.jsonl");
    // Only root may give a file away; everybody may give it to themselves.
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let owner = if uid.is_root() { (1234, 1235) } else { (uid.as_raw(), gid.as_raw()) };
    let options = JsonlOptions { owner: Some(owner), ..OPTIONS };
    for seq in 1..=2 {
        let mut sink = Jsonl::create(&path, &run(), options).unwrap();
        sink.write(&message(seq)).unwrap();
        sink.flush().unwrap();
    }
    assert_eq!(seqs(&path), [1, 2]);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert_eq!((metadata.uid(), metadata.gid()), owner);

    let theirs = dir.path().join("theirs.jsonl");
    fs::write(&theirs, "").unwrap();
    fs::set_permissions(&theirs, Permissions::from_mode(0o644)).unwrap();
    let before = fs::metadata(&theirs).unwrap();
    Jsonl::create(&theirs, &run(), options).unwrap();
    let after = fs::metadata(&theirs).unwrap();
    assert_eq!((after.mode(), after.uid()), (before.mode(), before.uid()));
}

#[test]
fn a_line_cut_by_a_crash_is_ended_first() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.jsonl");
    fs::write(&path, "{\"seq\":1}\n{\"se").unwrap();
    let mut sink = Jsonl::create(&path, &run(), OPTIONS).unwrap();
    sink.write(&message(2)).unwrap();
    sink.flush().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\"seq\":1}\n{\"se\n{\"schema_version\":1,"), "{text}");
}

#[test]
fn links_are_followed_but_lead_to_no_new_file() {
    let dir = TempDir::new().unwrap();
    let (file, link) = (dir.path().join("2026.jsonl"), dir.path().join("latest.jsonl"));
    symlink(&file, &link).unwrap();
    let error = Jsonl::create(&link, &run(), OPTIONS).err().unwrap().to_string();
    assert!(error.contains("latest.jsonl: it is a symbolic link to a file that is not there"));
    assert!(!file.exists());
    fs::write(&file, "").unwrap();
    let options = JsonlOptions { max_size: Some(1), ..OPTIONS };
    let mut sink = Jsonl::create(&link, &run(), options).unwrap();
    for seq in 1..=2 {
        sink.write(&message(seq)).unwrap();
    }
    sink.flush().unwrap();
    assert!(link.is_symlink(), "rotation moves the file, not the link");
    assert_eq!(seqs(&link), [2]);
    assert_eq!(seqs(&dir.path().join("2026.jsonl.1")), [1]);
}

#[test]
fn errors_name_the_file() {
    let dir = TempDir::new().unwrap();
    let message = |path: &Path| Jsonl::create(path, &run(), OPTIONS).err().unwrap().to_string();
    let missing = dir.path().join("no/x.jsonl");
    assert_eq!(
        message(&missing),
        format!("cannot open {}: No such file or directory (os error 2)", missing.display())
    );
    assert!(message(dir.path()).contains("Is a directory"));
}

#[test]
fn it_rotates_between_lines_and_keeps_the_youngest_files() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.jsonl");
    let name = |n: u32| dir.path().join(format!("x.jsonl.{n}"));
    let mut line = Vec::new();
    Encoder::new(&run(), Payload::Full).encode(&message(1), &mut line);
    // Two lines and a half fit.
    let max_size = Some(line.len() as u64 * 5 / 2);
    let options = JsonlOptions { max_size, ..OPTIONS };
    let mut sink = Jsonl::create(&path, &run(), options).unwrap();
    for seq in 1..=9 {
        sink.write(&message(seq)).unwrap();
    }
    sink.flush().unwrap();
    assert_eq!(seqs(&path), [9]);
    assert_eq!(
        (seqs(&name(1)), seqs(&name(2)), seqs(&name(3))),
        (vec![7, 8], vec![5, 6], vec![3, 4])
    );
    assert!(!name(4).exists());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    // The size counts across runs.
    drop(sink);
    let mut sink = Jsonl::create(&path, &run(), options).unwrap();
    for seq in 10..=11 {
        sink.write(&message(seq)).unwrap();
    }
    sink.flush().unwrap();
    assert_eq!((seqs(&path), seqs(&name(1))), (vec![11], vec![9, 10]));
    // None to keep: the old file goes.
    let mut sink = Jsonl::create(&path, &run(), JsonlOptions { keep: 0, ..options }).unwrap();
    for seq in 12..=13 {
        sink.write(&message(seq)).unwrap();
    }
    sink.flush().unwrap();
    assert_eq!((seqs(&path), seqs(&name(1))), (vec![13], vec![9, 10]));
}

#[test]
fn a_failed_rotation_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.jsonl");
    // A directory with something in it cannot be replaced by a file.
    fs::create_dir_all(dir.path().join("x.jsonl.1/y")).unwrap();
    let options = JsonlOptions { max_size: Some(1000), keep: 1, ..OPTIONS };
    let mut sink = Jsonl::create(&path, &run(), options).unwrap();
    for seq in 1..=20 {
        sink.write(&message(seq)).unwrap();
    }
    sink.flush().unwrap();
    assert_eq!(seqs(&path), (1..=20).collect::<Vec<_>>());
}

#[test]
fn reopen_goes_on_in_a_new_file_after_another_program_moved_it() {
    let dir = TempDir::new().unwrap();
    let (path, moved) = (dir.path().join("x.jsonl"), dir.path().join("x.old"));
    let mut sink = Jsonl::create(&path, &run(), OPTIONS).unwrap();
    sink.write(&message(1)).unwrap();
    sink.flush().unwrap();
    fs::rename(&path, &moved).unwrap();
    sink.write(&message(2)).unwrap();
    sink.flush().unwrap();
    sink.reopen().unwrap();
    sink.write(&message(3)).unwrap();
    sink.flush().unwrap();
    assert_eq!((seqs(&moved), seqs(&path)), (vec![1, 2], vec![3]));
}

#[test]
fn a_full_disk_is_an_error_that_counts() {
    let mut sink = Jsonl::create(Path::new("/dev/full"), &run(), OPTIONS).unwrap();
    for seq in 1..=3 {
        sink.write(&message(seq)).unwrap();
    }
    let error = sink.flush().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write to /dev/full: No space left on device (os error 28)"
    );
    assert_eq!((error.undelivered, error.closed), (3, false));
}

#[test]
fn many_lines_go_out_in_few_writes_of_whole_lines() {
    struct Calls(std::sync::mpsc::Sender<Vec<u8>>);
    impl Write for Calls {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (send, calls) = std::sync::mpsc::channel();
    let mut sink = Jsonl::to("test", Box::new(Calls(send)), &run(), Payload::Full);
    for seq in 1..=1000 {
        sink.write(&message(seq)).unwrap();
    }
    sink.flush().unwrap();
    let calls: Vec<_> = calls.try_iter().collect();
    assert!(calls.len() < 20 && calls.len() > 2, "{} writes", calls.len());
    assert!(calls.iter().all(|bytes| bytes.ends_with(b"\n")));
}
