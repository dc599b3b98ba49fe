// Enough of Metal's language for clang to check the kernels as C++ for OpenCL, which has address spaces: a pointer into
// the wrong one, a lost `const` or threadgroup memory outside of a kernel is an error there, as it is in Metal. Declarations
// only; nothing is run.

#define device __global
#define constant __constant
#define threadgroup __local
#define __HAVE_BFLOAT__ 1

typedef __SIZE_TYPE__ size_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef uint uint3 __attribute__((ext_vector_type(3)));

struct ulong2 {
    ulong x, y;
    ulong2(ulong x, ulong y) : x(x), y(y) {}
};

// Converts where it is written out, and not otherwise.
struct bfloat {
    ushort bits;
    bfloat() = default;
    explicit bfloat(float value) : bits(ushort(value)) {}
    explicit operator float() const { return float(bits); }
    explicit operator float() const __global { return float(bits); }
    explicit operator float() const __local { return float(bits); }
};

namespace metal {

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

float simd_sum(float);
float simd_max(float);
float simd_min(float);
float simd_shuffle_xor(float, ushort);
float simd_prefix_exclusive_sum(float);

float ceil(float);
float exp(float);
float fabs(float);
float log(float);
float sqrt(float);
float min(float, float);
float max(float, float);
uint min(uint, uint);
uint max(uint, uint);

template <typename To, typename From>
To as_type(From);

struct simdgroup_float8x8 {
    float at[2];
};

template <typename T, int Columns, int Rows>
simdgroup_float8x8 make_filled_simdgroup_matrix(T);

void simdgroup_load(
    simdgroup_float8x8&, threadgroup const float*, ulong = 8, ulong2 = ulong2(0, 0), bool = false
);
void simdgroup_store(simdgroup_float8x8, threadgroup float*, ulong = 8, ulong2 = ulong2(0, 0), bool = false);
void simdgroup_multiply(simdgroup_float8x8&, simdgroup_float8x8, simdgroup_float8x8);
void simdgroup_multiply_accumulate(
    simdgroup_float8x8&, simdgroup_float8x8, simdgroup_float8x8, simdgroup_float8x8
);

}  // namespace metal
