//! The protocol between the API server and a node: frames of one byte of type, four bytes of length and a payload.
//!
//! A connection carries one request. The node answers `Accepted` or `Refused`, then output until `Exit` or `Lost` (for
//! a log, until the connection closes); for `exec` the other side may send input. Closing it ends the request.

use std::io;

use bytes::Bytes;
use podwire_apiserver::remote::{ExecRequest, LogRequest, RemoteError};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest payload that is accepted.
const MAX: usize = 1 << 20;

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A container's log.
    Logs(#[serde(with = "LogRequestDef")] LogRequest),
    /// A command in a container.
    Exec(#[serde(with = "ExecRequestDef")] ExecRequest),
}

/// One message, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame to the node.
    Request(Request),
    /// The request is under way.
    Accepted,
    /// It is not, and why.
    Refused(RemoteError),
    /// Bytes for standard input.
    Stdin(Bytes),
    /// End of standard input.
    StdinEnd,
    /// New size of the terminal: columns, rows.
    Resize(u16, u16),
    /// Bytes of standard output, or of a log.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The command's exit code.
    Exit(i32),
    /// The command or the log was lost, and why.
    Lost(String),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "LogRequest")]
struct LogRequestDef {
    namespace: String,
    pod: String,
    container: String,
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail_lines: Option<u64>,
    since_seconds: Option<u64>,
    since_time: Option<String>,
    limit_bytes: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ExecRequest")]
struct ExecRequestDef {
    namespace: String,
    pod: String,
    container: String,
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Frame {
    fn encode(&self) -> io::Result<(u8, Bytes)> {
        Ok(match self {
            Self::Request(request) => (0, serde_json::to_vec(request)?.into()),
            Self::Accepted => (1, Bytes::new()),
            Self::Refused(RemoteError::NotFound(why)) => (2, why.clone().into()),
            Self::Refused(RemoteError::BadRequest(why)) => (3, why.clone().into()),
            Self::Refused(RemoteError::Unavailable(why)) => (4, why.clone().into()),
            Self::Stdin(bytes) => (5, bytes.clone()),
            Self::StdinEnd => (6, Bytes::new()),
            Self::Resize(columns, rows) => (7, [columns.to_be_bytes(), rows.to_be_bytes()].concat().into()),
            Self::Stdout(bytes) => (8, bytes.clone()),
            Self::Stderr(bytes) => (9, bytes.clone()),
            Self::Exit(code) => (10, code.to_be_bytes().to_vec().into()),
            Self::Lost(why) => (11, why.clone().into()),
        })
    }

    fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("malformed frame of type {kind}"));
        let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
        Ok(match kind {
            0 => Self::Request(serde_json::from_slice(&payload)?),
            1 => Self::Accepted,
            2 => Self::Refused(RemoteError::NotFound(text(&payload))),
            3 => Self::Refused(RemoteError::BadRequest(text(&payload))),
            4 => Self::Refused(RemoteError::Unavailable(text(&payload))),
            5 => Self::Stdin(payload.into()),
            6 => Self::StdinEnd,
            7 => match payload[..] {
                [a, b, c, d] => Self::Resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
                _ => return Err(malformed()),
            },
            8 => Self::Stdout(payload.into()),
            9 => Self::Stderr(payload.into()),
            10 => Self::Exit(i32::from_be_bytes(payload.try_into().map_err(|_| malformed())?)),
            11 => Self::Lost(text(&payload)),
            _ => return Err(malformed()),
        })
    }

    /// Reads the next frame; `None` at the end of the connection. Not cancel safe.
    ///
    /// # Errors
    /// The connection broke, or sent what is no frame.
    pub async fn read(source: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        match source.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        };
        let [kind, a, b, c, d] = head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes: {MAX} at most")));
        }
        let mut payload = vec![0; length];
        source.read_exact(&mut payload).await?;
        Self::decode(kind, payload).map(Some)
    }

    /// Writes the frame.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn write(&self, sink: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let (kind, payload) = self.encode()?;
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut buffer = Vec::with_capacity(5 + payload.len());
        buffer.push(kind);
        buffer.extend(length.to_be_bytes());
        buffer.extend(payload);
        sink.write_all(&buffer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn frames_survive_the_wire() {
        let exec = ExecRequest { pod: "p".into(), command: vec!["ls".into()], tty: true, ..Default::default() };
        let logs = LogRequest { pod: "p".into(), tail_lines: Some(3), ..Default::default() };
        let frames = [
            Frame::Request(Request::Exec(exec)),
            Frame::Request(Request::Logs(logs)),
            Frame::Accepted,
            Frame::Refused(RemoteError::NotFound("no".into())),
            Frame::Refused(RemoteError::BadRequest("no".into())),
            Frame::Refused(RemoteError::Unavailable("no".into())),
            Frame::Stdin(Bytes::from_static(b"\0in")),
            Frame::StdinEnd,
            Frame::Resize(80, 25),
            Frame::Stdout(Bytes::new()),
            Frame::Stderr(Bytes::from_static(b"err")),
            Frame::Exit(-1),
            Frame::Lost("gone".into()),
        ];
        block_on(async {
            let mut wire = Vec::new();
            for frame in &frames {
                frame.write(&mut wire).await.unwrap();
            }
            let mut wire = wire.as_slice();
            for frame in frames {
                assert_eq!(Frame::read(&mut wire).await.unwrap(), Some(frame));
            }
            assert_eq!(Frame::read(&mut wire).await.unwrap(), None);
        });
    }

    proptest! {
        #[test]
        fn nonsense_is_an_error_not_a_panic(bytes: Vec<u8>) {
            block_on(async {
                let mut wire = bytes.as_slice();
                while let Ok(Some(_)) = Frame::read(&mut wire).await {}
            });
        }
    }
}
