//! Container logs, in the format of container runtimes: `<RFC 3339 time> <stream> <F|P> <text>` a line, in
//! `/var/log/pods/<namespace>_<pod>_<uid>/<container>/<run>.log`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use k8s_openapi::jiff::Timestamp;
use podwire_apiserver::remote::LogRequest;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{mpsc, watch},
};

/// A file that has grown to so many bytes is set aside, and the one set aside before it is deleted (the kubelet's
/// `containerLogMaxSize`).
const MAX_SIZE: u64 = 10 << 20;
/// Longer lines are written in parts, tagged `P`.
const MAX_LINE: usize = 16 << 10;

/// How far a log has got; sent on every change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How often the file was set aside.
    pub rotations: u64,
    /// Bytes in the present file.
    pub size: u64,
    /// The container has ended: nothing comes any more.
    pub closed: bool,
}

/// One run's log, for readers.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
    progress: watch::Receiver<Progress>,
}

/// One run's log, for the one who writes it.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    progress: watch::Sender<Progress>,
}

impl LogWriter {
    /// Creates the log file and its directory.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(Self { path: path.to_owned(), file: open_new(path)?, progress: watch::Sender::default() })
    }

    /// The reader's side.
    pub fn log(&self) -> Log {
        Log { path: self.path.clone(), progress: self.progress.subscribe() }
    }

    /// Writes what comes from both streams until both have ended.
    pub async fn copy(mut self, stdout: impl AsyncRead + Unpin, stderr: impl AsyncRead + Unpin) {
        let (mut stdout, mut stderr) = (Lines::new("stdout", stdout), Lines::new("stderr", stderr));
        while !(stdout.ended && stderr.ended) {
            let written = tokio::select! {
                lines = stdout.next(), if !stdout.ended => self.write(&lines),
                lines = stderr.next(), if !stderr.ended => self.write(&lines),
            };
            if let Err(error) = written {
                tracing::warn!(path = %self.path.display(), %error, "cannot write a container's log");
            }
        }
        self.progress.send_modify(|p| p.closed = true);
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let before = *self.progress.borrow();
        let mut after = Progress { size: before.size + lines.len() as u64, ..before };
        if before.size > 0 && after.size > MAX_SIZE {
            fs::rename(&self.path, set_aside(&self.path))?;
            self.file = open_new(&self.path)?;
            after = Progress { rotations: before.rotations + 1, size: lines.len() as u64, closed: false };
        }
        self.file.write_all(lines)?;
        self.progress.send_replace(after);
        Ok(())
    }
}

fn set_aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn open_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Cuts one stream into tagged lines.
struct Lines<R> {
    name: &'static str,
    source: R,
    partial: BytesMut,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(name: &'static str, source: R) -> Self {
        Self { name, source, partial: BytesMut::new(), ended: false }
    }

    /// The next complete lines, ready to be written; what is left of a line at the end of the stream. Cancel safe:
    /// bytes are read into the field, and nothing is awaited after.
    async fn next(&mut self) -> Vec<u8> {
        self.partial.reserve(MAX_LINE);
        self.ended = !matches!(self.source.read_buf(&mut self.partial).await, Ok(1..));
        let now = Timestamp::now();
        let mut out = Vec::new();
        while let Some(end) = self.partial.iter().position(|b| *b == b'\n') {
            let line = self.partial.split_to(end + 1);
            tagged(&mut out, now, self.name, 'F', &line[..end]);
        }
        while self.partial.len() >= MAX_LINE {
            let part = self.partial.split_to(MAX_LINE);
            tagged(&mut out, now, self.name, 'P', &part);
        }
        if self.ended && !self.partial.is_empty() {
            tagged(&mut out, now, self.name, 'P', &self.partial.split());
        }
        out
    }
}

fn tagged(out: &mut Vec<u8>, now: Timestamp, stream: &str, tag: char, text: &[u8]) {
    // Nine digits always, so that the text starts in the same column.
    let _ = write!(out, "{now:.9} {stream} {tag} ");
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Which lines to send, and how.
#[derive(Debug, Clone, Default)]
struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
    /// The last line sent had no end: the next part continues it.
    within_line: bool,
}

impl Filter {
    fn of(request: &LogRequest, now: Timestamp) -> Result<Self, String> {
        let since = match (&request.since_time, request.since_seconds) {
            (Some(time), _) => {
                let time = time.parse().map_err(|e| format!("sinceTime {time:?} is not an RFC 3339 time: {e}"))?;
                Some(time)
            }
            (None, Some(seconds)) => {
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                Timestamp::from_second(now.as_second().saturating_sub(seconds)).ok()
            }
            (None, None) => None,
        };
        Ok(Self { since, timestamps: request.timestamps, within_line: false })
    }

    /// What to send for a line of the file; `None` for nothing.
    fn text(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        let mut fields = line.splitn(4, |b| *b == b' ');
        let (time, _stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        if let Some(since) = self.since {
            let written: Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
            if written < since {
                return None;
            }
        }
        let mut out = Vec::with_capacity(line.len());
        if self.timestamps && !self.within_line {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        out.extend_from_slice(text);
        self.within_line = tag == b"P";
        if !self.within_line {
            out.push(b'\n');
        }
        Some(out)
    }
}

impl Log {
    /// Removes the file. Readers that have it open are not disturbed.
    pub fn delete(&self) {
        for path in [&self.path, &set_aside(&self.path)] {
            let _ = fs::remove_file(path);
        }
    }

    /// Sends what `request` asks for to `sink`, until its end, or until nobody listens.
    ///
    /// # Errors
    /// The request is malformed or the file cannot be read.
    pub async fn read(mut self, request: &LogRequest, sink: mpsc::Sender<Bytes>) -> Result<(), String> {
        let mut filter = Filter::of(request, Timestamp::now())?;
        let failed = |e: io::Error| format!("cannot read the log: {e}");
        let mut left = request.limit_bytes.unwrap_or(u64::MAX);
        let mut at = *self.progress.borrow_and_update();
        let mut reader = BufReader::new(File::open(&self.path).map_err(failed)?);
        if let Some(tail) = request.tail_lines {
            let start = start_of_tail(&mut reader, tail).map_err(failed)?;
            reader.seek(SeekFrom::Start(start)).map_err(failed)?;
        }
        loop {
            while let Some(chunk) = next_chunk(&mut reader, &mut filter).map_err(failed)? {
                let take = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                left -= take as u64;
                if sink.send(Bytes::from(chunk).slice(..take)).await.is_err() || left == 0 {
                    return Ok(());
                }
            }
            if !request.follow || at.closed {
                return Ok(());
            }
            tokio::select! {
                changed = self.progress.changed() => if changed.is_err() { return Ok(()) },
                () = sink.closed() => return Ok(()),
            }
            let now = *self.progress.borrow_and_update();
            if now.rotations != at.rotations {
                reader = BufReader::new(File::open(&self.path).map_err(failed)?);
            }
            at = now;
        }
    }
}

/// Up to some kilobytes of text to send; `None` at the end of the file.
fn next_chunk(reader: &mut BufReader<File>, filter: &mut Filter) -> io::Result<Option<Vec<u8>>> {
    let mut chunk = Vec::new();
    let mut line = Vec::new();
    while chunk.len() < MAX_LINE {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        chunk.extend(filter.text(&line).unwrap_or_default());
    }
    Ok((!chunk.is_empty()).then_some(chunk))
}

/// Where the last `lines` lines of the file begin. Parts of a long line count as one line.
fn start_of_tail(file: &mut (impl Read + Seek), lines: u64) -> io::Result<u64> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    if lines == 0 {
        return Ok(text.len() as u64);
    }
    let mut starts = Vec::new();
    let (mut at, mut within_line) = (0, false);
    for line in text.split_inclusive(|b| *b == b'\n') {
        if !within_line {
            starts.push(at);
        }
        within_line = line.splitn(4, |b| *b == b' ').nth(2) == Some(b"P".as_slice());
        at += line.len() as u64;
    }
    let skip = starts.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
    Ok(starts.get(skip).copied().unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Cursor, time::Duration};

    async fn written(name: &str, stdout: &[u8], stderr: &[u8]) -> (PathBuf, Log) {
        let dir = std::env::temp_dir().join(format!("podwire-logs-{name}-{}", std::process::id()));
        let writer = LogWriter::create(&dir.join("c/0.log")).unwrap();
        let log = writer.log();
        writer.copy(stdout, stderr).await;
        (dir, log)
    }

    async fn read(log: &Log, request: LogRequest) -> String {
        let (sink, mut source) = mpsc::channel(64);
        log.clone().read(&request, sink).await.unwrap();
        let mut text = Vec::new();
        while let Some(bytes) = source.recv().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn lines_come_back_as_they_were_written() {
        let (dir, log) = written("plain", b"one\n\nthree\nno end", b"").await;
        let all = LogRequest::default();
        assert_eq!(read(&log, all.clone()).await, "one\n\nthree\nno end");
        assert_eq!(read(&log, LogRequest { tail_lines: Some(2), ..all.clone() }).await, "three\nno end");
        assert_eq!(read(&log, LogRequest { tail_lines: Some(0), ..all.clone() }).await, "");
        assert_eq!(read(&log, LogRequest { tail_lines: Some(9), ..all.clone() }).await, "one\n\nthree\nno end");
        assert_eq!(read(&log, LogRequest { limit_bytes: Some(6), ..all.clone() }).await, "one\n\nt");
        assert_eq!(read(&log, LogRequest { since_time: Some("2999-01-01T00:00:00Z".into()), ..all.clone() }).await, "");
        assert_eq!(read(&log, LogRequest { since_seconds: Some(60), ..all.clone() }).await, "one\n\nthree\nno end");
        let stamped = read(&log, LogRequest { timestamps: true, ..all }).await;
        let first = stamped.lines().next().unwrap();
        let (time, text) = first.split_once(' ').unwrap();
        assert_eq!((time.len(), text), ("2026-11-22T15:00:00.123456789Z".len(), "one"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn long_lines_are_put_together_again() {
        let long = "x".repeat(3 * MAX_LINE + 5);
        let (dir, log) = written("long", format!("a\n{long}\nb\n").as_bytes(), b"").await;
        assert_eq!(read(&log, LogRequest { tail_lines: Some(2), ..Default::default() }).await, format!("{long}\nb\n"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn both_streams_are_kept_and_told_apart() {
        let (dir, log) = written("both", b"out\n", b"err\n").await;
        let file = fs::read_to_string(&log.path).unwrap();
        assert!(file.contains(" stdout F out\n") && file.contains(" stderr F err\n"), "{file}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn follow_sends_lines_as_they_come_and_ends_with_the_container() {
        let dir = std::env::temp_dir().join(format!("podwire-logs-follow-{}", std::process::id()));
        let writer = LogWriter::create(&dir.join("0.log")).unwrap();
        let log = writer.log();
        let (mut out, stdout) = tokio::io::duplex(64);
        tokio::spawn(writer.copy(stdout, tokio::io::empty()));
        let (sink, mut source) = mpsc::channel(1);
        let follow = LogRequest { follow: true, ..Default::default() };
        let reading = tokio::spawn(async move { log.read(&follow, sink).await });
        for line in ["one\n", "two\n"] {
            tokio::io::AsyncWriteExt::write_all(&mut out, line.as_bytes()).await.unwrap();
            let got = tokio::time::timeout(Duration::from_secs(5), source.recv()).await.unwrap().unwrap();
            assert_eq!(got, line);
        }
        drop(out);
        assert_eq!(source.recv().await, None);
        reading.await.unwrap().unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_log(bytes: Vec<u8>, lines in 0_u64..5) {
            let _ = start_of_tail(&mut Cursor::new(bytes.clone()), lines).unwrap();
            let _ = Filter { since: Some(Timestamp::UNIX_EPOCH), ..Filter::default() }.text(&bytes);
        }
    }
}
