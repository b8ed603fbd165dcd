//! A recording as a source.

use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{Source, SourceError};
use crate::model::{Input, Timestamp};
use crate::recording::{Header, ReadError, Reader};

/// Most inputs in a batch.
const BATCH: usize = 256;

/// How long a replay in real time waits at most before it asks whether anybody still wants more.
const PATIENCE: Duration = Duration::from_millis(100);

/// Pushes the inputs of a recording.
#[derive(Debug)]
pub struct Replay {
    reader: Reader<BufReader<File>>,
    speed: Option<f64>,
}

impl Replay {
    /// Opens a recording, to be replayed as fast as possible.
    pub fn open(path: &Path) -> Result<(Header, Self), ReadError> {
        let (header, reader) = Reader::open(path)?;
        Ok((header, Self { reader, speed: None }))
    }

    /// Replays in real time, so many times as fast as it was recorded; `None` (and what is no
    /// positive number) means as fast as possible.
    #[must_use]
    pub fn speed(mut self, speed: Option<f64>) -> Self {
        self.speed = speed.filter(|speed| speed.is_finite() && *speed > 0.0);
        self
    }
}

/// Real time that follows the recording's.
struct Pace {
    speed: f64,
    began: Instant,
    first: Timestamp,
}

impl Pace {
    /// How long until it is time for `at`.
    fn wait(&self, at: Timestamp) -> Duration {
        let ahead = Duration::from_nanos(at.since(self.first)).as_secs_f64() / self.speed;
        // Beyond what a duration can hold nobody waits anyway.
        let due = Duration::try_from_secs_f64(ahead).unwrap_or(Duration::MAX);
        due.saturating_sub(self.began.elapsed())
    }
}

impl Source for Replay {
    /// A replay in real time pushes an empty batch now and then while it waits: so it learns that
    /// nobody wants more.
    fn run(
        &mut self,
        push: &mut dyn FnMut(Vec<Input>) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut pace = None;
        for input in self.reader.by_ref() {
            let input = match input {
                Ok(input) => input,
                Err(error) => {
                    // What stands before the fault was recorded well. Whether anybody wants it does
                    // not matter any more.
                    let _wanted = push(batch);
                    return Err(error.into());
                }
            };
            if let Some(speed) = self.speed {
                let at = input.at();
                let pace =
                    pace.get_or_insert_with(|| Pace { speed, began: Instant::now(), first: at });
                loop {
                    let wait = pace.wait(at);
                    if wait.is_zero() {
                        break;
                    }
                    if push(std::mem::take(&mut batch)).is_break() {
                        return Ok(());
                    }
                    thread::sleep(wait.min(PATIENCE));
                }
            }
            batch.push(input);
            if batch.len() >= BATCH
                && push(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).is_break()
            {
                return Ok(());
            }
        }
        // The last batch: nothing follows, wanted or not.
        let _wanted = push(batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Writer;

    fn recording(folder: &Path, ticks: u64, cut: bool) -> std::path::PathBuf {
        let path = folder.join("a.mcpcap");
        let mut writer = Writer::create(&path, &Header::default()).unwrap();
        for at in 0..ticks {
            writer.input(&Input::Tick(Timestamp(at * 1_000_000))).unwrap();
        }
        writer.flush().unwrap();
        if cut {
            let text = std::fs::read(&path).unwrap();
            std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        }
        path
    }

    fn replay(mut replay: Replay, wanted: usize) -> (Vec<Input>, Result<(), SourceError>) {
        let mut all = Vec::new();
        let end = replay.run(&mut |batch| {
            assert!(batch.len() <= BATCH);
            all.extend(batch);
            if all.len() < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        (all, end)
    }

    #[test]
    fn everything_in_order_until_nobody_wants_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = recording(folder.path(), 1000, false);
        let (all, end) = replay(Replay::open(&path).unwrap().1, usize::MAX);
        let expected: Vec<_> = (0..1000).map(|at| Input::Tick(Timestamp(at * 1_000_000))).collect();
        assert_eq!(all, expected);
        assert!(end.is_ok());
        assert_eq!(replay(Replay::open(&path).unwrap().1, 1).0.len(), BATCH);
    }

    #[test]
    fn what_stands_before_a_fault_is_pushed() {
        let folder = tempfile::tempdir().unwrap();
        let path = recording(folder.path(), 300, true);
        let (all, end) = replay(Replay::open(&path).unwrap().1, usize::MAX);
        assert_eq!(all.len(), 299);
        assert!(end.unwrap_err().to_string().starts_with("line 301: cut off"));
    }

    #[test]
    fn real_time_takes_its_time_and_ends_when_nobody_wants_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = recording(folder.path(), 31, false);
        let began = Instant::now();
        let (all, _) = replay(Replay::open(&path).unwrap().1.speed(Some(0.5)), usize::MAX);
        assert_eq!(all.len(), 31);
        assert!(began.elapsed() >= Duration::from_millis(60));
        // A year at this speed, but the first batch is enough.
        let (all, _) = replay(Replay::open(&path).unwrap().1.speed(Some(1e-9)), 1);
        assert_eq!(all.len(), 1);
    }
}
