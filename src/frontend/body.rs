//! The body of an answer, counted as it leaves.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use http_body::{Body, Frame, SizeHint};

use super::access_log::Record;
use super::multipart::Multipart;
use crate::oci::ByteRange;
use crate::pull::{self, Reader};

/// The body of an answer.
pub(super) struct ResponseBody {
    content: Content,
    /// Written when the body is dropped: with its last byte, or when the client has left.
    record: Option<Record>,
}

enum Content {
    Whole(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, pull::Error>> + Send>>),
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
        let chunks = unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(chunk) => chunk.map(|chunk| (Ok(chunk), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Self::of_stream(chunks)
    }

    /// Several ranges, each behind its head; the first of them is `first`.
    pub(super) fn multipart(multipart: Multipart, reader: Reader, first: ByteRange) -> Self {
        Self::of_stream(multipart.stream(reader, first))
    }

    fn of_stream(chunks: impl Stream<Item = Result<Bytes, pull::Error>> + Send + 'static) -> Self {
        Self { content: Content::Stream(Box::pin(chunks)), record: None }
    }

    pub(super) fn recorded(mut self, record: Record) -> Self {
        self.record = Some(record);
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = pull::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, pull::Error>>> {
        let this = &mut *self;
        let chunk = match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Content::Stream(stream) => stream.as_mut().poll_next(cx),
        };
        if let (Poll::Ready(chunk), Some(record)) = (&chunk, &mut this.record) {
            match chunk {
                Some(Ok(bytes)) => record.sent(bytes.len()),
                Some(Err(error)) => record.broken(error),
                None => {}
            }
        }
        chunk.map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Stream(_) => SizeHint::default(),
        }
    }
}
