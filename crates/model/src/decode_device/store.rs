//! The key-value cache in a device's memory: allocated once, keys and values of each layer apart, and a block is a place in
//! each of them.

use crate::cache::{LANES, Store};
use crate::config::Config;
#[cfg(feature = "cuda")]
use crate::error::Error;
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// Blocks in a device's memory. A block's payload is its number, and position `p` of a sequence lies in row
/// `block(p) * LANES + p % LANES` of every layer's keys and values.
pub struct Blocks {
    memory: Memory,
    /// Numbers of blocks that nobody has.
    spare: Vec<u32>,
    count: usize,
    /// Copies to make before the next step, those of one list in any order.
    copies: Vec<Vec<(u32, u32)>>,
}

/// By layer, `[blocks * LANES, key_value heads * dim]` for keys and for values.
enum Memory {
    Tensors(Vec<[Tensor; 2]>),
    #[cfg(feature = "cuda")]
    Cuda(Vec<crate::ops::cuda::decode::Cached<candle_core::CudaStorage>>),
}

impl Blocks {
    /// Allocates so many blocks for a model of this shape.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn new(config: &Config, dtype: DType, device: &Device, count: usize) -> Result<Self> {
        let shape = (count * LANES, config.widths().1);
        let make = || Tensor::zeros(shape, dtype, device);
        let layers = (0..config.num_layers).map(|_| Ok([make()?, make()?])).collect::<Result<_>>()?;
        Ok(Self::of(Memory::Tensors(layers), count))
    }

    /// Blocks in memory that kernels take.
    #[cfg(feature = "cuda")]
    pub(crate) fn in_cuda(
        layers: Vec<crate::ops::cuda::decode::Cached<candle_core::CudaStorage>>,
        count: usize,
    ) -> Self {
        Self::of(Memory::Cuda(layers), count)
    }

    fn of(memory: Memory, count: usize) -> Self {
        // Low numbers are taken first.
        Self { memory, spare: (0..count as u32).rev().collect(), count, copies: Vec::new() }
    }

    /// Keys and values by layer, as tensors.
    ///
    /// # Errors
    /// When they are in memory that kernels take.
    pub(crate) fn tensors(&self) -> Result<&[[Tensor; 2]]> {
        match &self.memory {
            Memory::Tensors(layers) => Ok(layers),
            #[cfg(feature = "cuda")]
            Memory::Cuda(_) => Err(Error::Unsupported("a cache for kernels was given to the composed form".into())),
        }
    }

    /// Keys and values by layer, in memory that kernels take.
    ///
    /// # Errors
    /// When they are tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(&mut self) -> Result<&mut [crate::ops::cuda::decode::Cached<candle_core::CudaStorage>]> {
        match &mut self.memory {
            Memory::Cuda(layers) => Ok(layers),
            Memory::Tensors(_) => Err(Error::Unsupported("a cache of tensors was given to kernels".into())),
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(config: &Config, dtype: DType) -> usize {
        LANES * config.cache_per_token() * dtype.size_in_bytes()
    }

    /// How many blocks were allocated.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The copies that forks have asked for since the last step, as lists to be made one after the other. Within a list no
    /// block is both read and written, nor written twice, so that a device may make its copies at once.
    pub(crate) fn take_copies(&mut self) -> Vec<Vec<(u32, u32)>> {
        std::mem::take(&mut self.copies)
    }
}

impl Store for Blocks {
    type Payload = u32;

    fn make(&mut self) -> Option<Arc<u32>> {
        self.spare.pop().map(Arc::new)
    }

    fn unmake(&mut self, block: Arc<u32>) {
        self.spare.push(*block);
    }

    fn copy(&mut self, from: &u32, to: &mut u32) {
        // A block that was the source of a copy may have been given back, and be the target of the next.
        let clash = |&(source, target): &(u32, u32)| source == *to || target == *to || target == *from;
        match self.copies.last_mut() {
            Some(last) if !last.iter().any(clash) => last.push((*from, *to)),
            _ => self.copies.push(vec![(*from, *to)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn copies_that_would_overtake_each_other_are_in_later_lists() {
        let text = r#"{"model_type": "qwen2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"#;
        let config = Config::parse(text, Path::new("config.json")).unwrap();
        let mut blocks = Blocks::new(&config, DType::F32, &Device::Cpu, 4).unwrap();
        for (from, mut to) in [(0, 1), (0, 2), (2, 3), (0, 4), (4, 0), (5, 0)] {
            blocks.copy(&from, &mut to);
        }
        assert_eq!(blocks.take_copies(), [vec![(0, 1), (0, 2)], vec![(2, 3), (0, 4)], vec![(4, 0)], vec![(5, 0)]]);
        assert!(blocks.take_copies().is_empty());
    }

    #[test]
    fn numbers_are_used_once_and_come_back() {
        let text = r#"{"model_type": "qwen2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"#;
        let config = Config::parse(text, Path::new("config.json")).unwrap();
        assert_eq!(Blocks::block_bytes(&config, DType::BF16), 16 * 2 * 4 * 2);
        let mut blocks = Blocks::new(&config, DType::F32, &Device::Cpu, 2).unwrap();
        let (a, b) = (blocks.make().unwrap(), blocks.make().unwrap());
        assert_eq!((*a, *b), (0, 1));
        assert!(blocks.make().is_none());
        blocks.unmake(a);
        assert_eq!(*blocks.make().unwrap(), 0);
    }
}
