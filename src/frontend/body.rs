//! The body of an answer, counted as it leaves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use futures_util::stream::unfold;
use http_body::{Body, Frame, SizeHint};

use super::access_log::Record;
use super::multipart::Multipart;
use super::outbox::{FilePart, Outbox};
use super::requests::Open;
use crate::oci::ByteRange;
use crate::pull::{self, Chunk, Reader};

/// The body of an answer, whatever carries it.
pub(super) struct ResponseBody {
    content: Content,
    /// Written when the body and its frames are gone: with the last byte, or when the client has left.
    record: Option<Arc<Record>>,
}

enum Content {
    Whole(Option<Bytes>),
    Unread(Box<Unread>),
    Stream(Pin<Box<dyn Stream<Item = Result<Chunk, pull::Error>> + Send>>),
}

/// What is read once it is clear how.
struct Unread {
    reader: Reader,
    /// What stands around several ranges, and the first of them.
    multipart: Option<(Multipart, ByteRange)>,
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { content: Content::Whole((!bytes.is_empty()).then_some(bytes)), record: None }
    }

    /// Reads as fast as the client takes it. The answer's `Content-Length` is the promise that this
    /// body keeps or breaks.
    pub(super) fn stream(reader: Reader) -> Self {
        Self { content: Content::Unread(Box::new(Unread { reader, multipart: None })), record: None }
    }

    /// Several ranges, each behind its head; the first of them is `first`.
    pub(super) fn multipart(multipart: Multipart, reader: Reader, first: ByteRange) -> Self {
        let multipart = Some((multipart, first));
        Self { content: Content::Unread(Box::new(Unread { reader, multipart })), record: None }
    }

    pub(super) fn recorded(mut self, record: Record) -> Self {
        self.record = Some(Arc::new(record));
        self
    }

    /// Begins to read, with `files` as slices of files where there are any.
    pub(super) fn open(&mut self, files: bool) {
        let unread = match std::mem::replace(&mut self.content, Content::Whole(None)) {
            Content::Unread(unread) => *unread,
            opened => {
                self.content = opened;
                return;
            }
        };
        self.content = Content::Stream(match unread.multipart {
            Some((multipart, first)) => Box::pin(multipart.stream(unread.reader, first, files)),
            None => Box::pin(unfold(Some(unread.reader), move |reader| async move {
                let mut reader = reader?;
                match reader.next(files).await {
                    Ok(chunk) => chunk.map(|chunk| (Ok(chunk), Some(reader))),
                    Err(error) => Some((Err(error), None)),
                }
            })),
        });
    }

    /// A body of these chunks.
    #[cfg(test)]
    pub(super) fn of(chunks: Vec<Chunk>) -> Self {
        let chunks = futures_util::stream::iter(chunks.into_iter().map(Ok));
        Self { content: Content::Stream(Box::pin(chunks)), record: None }
    }

    /// Who counts what leaves.
    pub(super) fn record(&self) -> Option<Arc<Record>> {
        self.record.clone()
    }

    /// The next bytes of a body that was opened.
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, pull::Error>>> {
        let chunk = match &mut self.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Chunk::Memory(bytes)))),
            Content::Stream(stream) => stream.as_mut().poll_next(cx),
            Content::Unread(_) => {
                self.open(false);
                return self.poll_chunk(cx);
            }
        };
        if let (Poll::Ready(Some(Err(error))), Some(record)) = (&chunk, &self.record) {
            record.broken(error);
        }
        chunk
    }

    pub(super) fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Unread(_) | Content::Stream(_) => SizeHint::default(),
        }
    }
}

/// A frame of an answer on HTTP/1.1, counted as it is written.
pub(super) struct Outgoing {
    data: Data,
    record: Option<Arc<Record>>,
    _open: Open,
}

enum Data {
    Memory(Bytes),
    File(FilePart),
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        match &self.data {
            Data::Memory(bytes) => bytes.remaining(),
            Data::File(part) => part.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.data {
            Data::Memory(bytes) => bytes.chunk(),
            Data::File(part) => part.chunk(),
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.data {
            Data::Memory(bytes) => bytes.advance(count),
            Data::File(part) => part.advance(count),
        }
        if let Some(record) = &self.record {
            record.sent(count);
        }
    }
}

/// The body of an answer on HTTP/1.1.
pub(super) struct Http1Body {
    body: ResponseBody,
    /// Where files are sent; `None` where the connection takes memory only.
    outbox: Option<Arc<Outbox>>,
    /// The request is open until the body and its frames are gone.
    open: Open,
}

impl Http1Body {
    pub(super) fn new(mut body: ResponseBody, outbox: Option<Arc<Outbox>>, open: Open) -> Self {
        body.open(outbox.is_some());
        Self { body, outbox, open }
    }
}

impl Body for Http1Body {
    type Data = Outgoing;
    type Error = pull::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Outgoing>, pull::Error>>> {
        let this = &mut *self;
        let chunk = std::task::ready!(this.body.poll_chunk(cx));
        Poll::Ready(chunk.map(|chunk| {
            let data = match (chunk?, &this.outbox) {
                (Chunk::Memory(bytes), _) => Data::Memory(bytes),
                (Chunk::File(slice), Some(outbox)) => Data::File(outbox.show(slice)),
                // It was opened without files.
                (Chunk::File(_), None) => return Err(pull::Error::Internal),
            };
            Ok(Frame::data(Outgoing { data, record: this.body.record(), _open: this.open.clone() }))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
