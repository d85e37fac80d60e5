//! Zstandard (RFC 8878) of values, within bounds: a small value that decompresses to gigabytes is given up after a
//! window and one step more than the bound.

use super::reject::{Reason, Reject};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// Most bytes decoded at once before the bound is looked at; a block holds at most as many again.
const STEP_BYTES: usize = 128 * 1024;

/// Largest window that a frame may ask for: what the format recommends every decoder to support (section 3.1.1.1.2).
/// Writers may ask for it whatever the content.
const MAX_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

fn bad(what: impl std::fmt::Display) -> Reject {
    Reject::new(Reason::Malformed, format!("zstd: {what}"))
}

/// Decompresses all frames of a value; skippable frames are skipped.
///
/// # Errors
/// [`Reason::TooBig`] when there is more than `max` bytes or a window past the bound, [`Reason::Malformed`] when it is
/// no zstd, is cut off, wants a dictionary or has a wrong checksum.
pub(super) fn decompress(mut value: &[u8], max: usize) -> Result<Vec<u8>, Reject> {
    let mut content = Vec::new();
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_WINDOW_BYTES);
    while !value.is_empty() {
        match decoder.reset(&mut value) {
            Ok(()) => frame(&mut decoder, &mut value, &mut content, max)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                value = value.get(length..).ok_or_else(|| bad("a skippable frame is cut off"))?;
            }
            Err(error @ FrameDecoderError::WindowSizeTooBig { .. }) => {
                return Err(Reject::new(Reason::TooBig, format!("zstd: {error}")));
            }
            Err(error) => return Err(bad(error)),
        }
    }
    Ok(content)
}

fn frame(
    decoder: &mut FrameDecoder,
    value: &mut &[u8],
    content: &mut Vec<u8>,
    max: usize,
) -> Result<(), Reject> {
    let too_big = || Reject::new(Reason::TooBig, format!("zstd: decompresses to more than {max} bytes"));
    // What is announced need not be decoded to be refused; 0 stands for "not announced" as well.
    if usize::try_from(decoder.content_size()).map_or(true, |size| size > max) {
        return Err(too_big());
    }
    let mut finished = false;
    while !finished {
        finished =
            decoder.decode_blocks(&mut *value, BlockDecodingStrategy::UptoBytes(STEP_BYTES)).map_err(bad)?;
        // What the window still needs stays in the decoder until the frame ends.
        decoder.collect_to_writer(&mut *content).map_err(bad)?;
        if content.len() > max {
            return Err(too_big());
        }
    }
    match decoder.get_checksum_from_data() {
        Some(sum) if Some(sum) != decoder.get_calculated_checksum() => Err(bad("wrong checksum")),
        _ => Ok(()),
    }
}

/// Compresses a value into one frame.
pub(super) fn compress(content: &[u8]) -> Vec<u8> {
    compress_to_vec(content, CompressionLevel::Fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_is_decompressed_up_to_the_bound() {
        for content in [vec![], b"abc".repeat(5000), (0..=255).collect()] {
            let value = compress(&content);
            assert_eq!(decompress(&value, content.len()).unwrap(), content);
            if !content.is_empty() {
                assert_eq!(decompress(&value, content.len() - 1).unwrap_err().reason, Reason::TooBig);
            }
            // Several frames are one value; a skippable one is nothing.
            let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7][..], &value, &value].concat();
            assert_eq!(decompress(&skipped, 2 * content.len()).unwrap(), content.repeat(2));
        }
    }

    #[test]
    fn what_is_no_zstd_is_malformed() {
        let value = compress(&b"abc".repeat(5000));
        for cut in 1..value.len() {
            assert_eq!(decompress(&value[..cut], 1 << 20).unwrap_err().reason, Reason::Malformed, "{cut}");
        }
        for bad in [b"{}".as_slice(), &[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7], &[&value[..], b"x"].concat()]
        {
            assert_eq!(decompress(bad, 1 << 20).unwrap_err().reason, Reason::Malformed, "{bad:02x?}");
        }
    }
}
