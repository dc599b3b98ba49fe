//! A model's projections and embedding as the decoder wants them: packed, in the type of the weights, with adapters beside
//! them.

use crate::block::Projection;
use crate::decode::Compute;
use crate::error::{Error, Result};
use crate::kernels::int8::Int8;
use crate::kernels::packed::Packed;
use crate::kernels::weights::{Element, Weights};
use crate::kernels::{math, vectorized};
use crate::ops::{with_elements, with_weights};
use crate::qwen2::Qwen2;
use candle_core::{DType, Tensor};
use half::bf16;

/// A matrix as generation multiplies by it.
pub(crate) enum Matrix {
    /// In f32 or bf16.
    Float(Packed),
    /// In eight bits.
    Int8(Int8),
}

impl Matrix {
    /// Outputs of the product.
    pub fn out(&self) -> usize {
        match self {
            Self::Float(packed) => packed.out(),
            Self::Int8(packed) => packed.out(),
        }
    }

    /// The packed matrix's bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Float(packed) => packed.bytes(),
            Self::Int8(packed) => packed.bytes(),
        }
    }

    /// `y[m, out] = x[m, k] w^T`, both row-major.
    pub fn matmul(&self, x: &[f32], y: &mut [f32]) {
        match self {
            Self::Float(packed) => packed.matmul(x, y),
            Self::Int8(packed) => packed.matmul(x, y),
        }
    }
}

/// Projections of one input, stacked: their outputs lie one behind the other.
pub(crate) struct PackedProjection {
    base: Matrix,
    adapters: Vec<PackedAdapter>,
}

/// The adapter of one of the stacked projections.
struct PackedAdapter {
    /// Where its outputs start.
    first: usize,
    /// `[rank, in]`.
    a: Matrix,
    /// `[out, rank]`, times the scale.
    b: Matrix,
}

impl PackedProjection {
    /// Packs projections that take the same input; biases are left to the caller.
    pub fn stack(parts: &[&Projection], compute: Compute) -> Result<Self> {
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        let mut packed = Self { base: pack(&weights, compute)?, adapters: Vec::new() };
        packed.adapt(parts)?;
        Ok(packed)
    }

    /// Takes the adapters that the projections have now.
    pub fn adapt(&mut self, parts: &[&Projection]) -> Result<()> {
        self.adapters.clear();
        let mut first = 0;
        for part in parts {
            if let Some(adapter) = &part.adapter {
                let b = (&adapter.b.detach() * adapter.scale)?;
                self.adapters.push(PackedAdapter {
                    first,
                    a: pack(&[&adapter.a], Compute::F32)?,
                    b: pack(&[&b], Compute::F32)?,
                });
            }
            first += part.weight.dim(0)?;
        }
        Ok(())
    }

    /// Bytes of the projections themselves.
    pub fn bytes(&self) -> usize {
        self.base.bytes()
    }

    /// `y = x w^T` with what adapters add: `x: [rows, in]`, `y: [rows, out]`.
    pub fn matmul(&self, x: &[f32], y: &mut [f32]) {
        self.base.matmul(x, y);
        let out = self.base.out();
        let rows = y.len() / out;
        for PackedAdapter { first, a, b } in &self.adapters {
            let mut down = vec![0.0; rows * a.out()];
            a.matmul(x, &mut down);
            let mut up = vec![0.0; rows * b.out()];
            b.matmul(&down, &mut up);
            vectorized!({
                for (y, up) in y.chunks_exact_mut(out).zip(up.chunks_exact(b.out())) {
                    math::axpy(&mut y[*first..], 1.0, up);
                }
            });
        }
    }
}

/// The embedding, a row a token.
pub(crate) enum Rows {
    /// A copy.
    Wide { width: usize, values: Vec<f32> },
    /// A copy in bf16.
    Narrow { width: usize, values: Vec<bf16> },
}

impl Rows {
    pub fn new(model: &Qwen2) -> Result<Self> {
        let width = model.config().hidden_size;
        Ok(with_weights(&model.embedding, "decoder", |w| {
            Ok(match w {
                Weights::F32(values) => Self::Wide { width, values: values.to_vec() },
                Weights::Bf16(values) => Self::Narrow { width, values: values.to_vec() },
            })
        })?)
    }

    /// Appends the row of `token` to `x`.
    pub fn append(&self, token: usize, x: &mut Vec<f32>) {
        match self {
            Self::Wide { width, values } => x.extend_from_slice(&values[token * width..][..*width]),
            Self::Narrow { width, values } => x.extend(values[token * width..][..*width].iter().map(|v| v.widen())),
        }
    }
}

/// Packs a head `[vocab, in]`, which is never rounded to eight bits: its errors would go into log-probs as they are.
pub(crate) fn pack_head(head: &Tensor, compute: Compute) -> Result<Matrix> {
    pack(&[head], if compute == Compute::Int8 { Compute::Bf16 } else { compute })
}

/// Packs matrices `[out_i, in]` of one type, stacked.
pub(crate) fn pack(parts: &[&Tensor], compute: Compute) -> Result<Matrix> {
    let inner = parts.first().map_or(Ok(0), |part| part.dim(1))?;
    let narrow = parts.iter().all(|part| part.dtype() == DType::BF16);
    // Read guards of all storages at once, so that nothing is copied on the way.
    let guards: Vec<_> = parts.iter().map(|part| part.storage_and_layout()).collect();
    let storages = guards.iter().map(|(storage, layout)| match &**storage {
        candle_core::Storage::Cpu(storage) => Ok(crate::ops::weights(storage, layout, "decoder")?),
        _ => Err(Error::Unsupported("the packed decoder runs on the CPU".into())),
    });
    let weights = storages.collect::<Result<Vec<Weights>>>()?;
    if narrow {
        let parts: Vec<&[bf16]> = weights.iter().filter_map(Weights::narrow).collect();
        return Ok(match compute {
            Compute::F32 => Matrix::Float(Packed::stack_narrow(&parts, inner)),
            Compute::Bf16 => Matrix::Float(Packed::stack_pairs(&parts, inner)),
            Compute::Int8 => Matrix::Int8(Int8::stack(&parts, inner)),
        });
    }
    let parts: Vec<_> = weights.iter().map(|w| w.widened(0..w.len())).collect();
    let parts: Vec<&[f32]> = parts.iter().map(|part| &part[..]).collect();
    Ok(match compute {
        Compute::F32 => Matrix::Float(Packed::stack(&parts, inner)),
        Compute::Bf16 => Matrix::Float(Packed::stack_pairs(&parts, inner)),
        Compute::Int8 => Matrix::Int8(Int8::stack(&parts, inner)),
    })
}

/// The elements of an f32 tensor.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(with_elements(tensor, "decoder", |values| Ok(values.to_vec()))?)
}

/// The bias of a projection; empty where it has none.
pub(crate) fn bias(projection: &Projection) -> Result<Vec<f32>> {
    projection.bias.as_ref().map_or_else(|| Ok(Vec::new()), values)
}
