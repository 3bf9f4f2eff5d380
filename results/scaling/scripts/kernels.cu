// A block of BandSet (width 48 = 32 own + 16 pooled), NHWC bfloat16: 3x3 convolutions from halo tiles in shared memory by mma.sync, with what follows them fused.
typedef unsigned short u16; typedef unsigned int u32;
__device__ __forceinline__ float lo(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float hi(u32 v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ u32 pack(float a, float b) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a)); return r; }
__device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void cp16(u32 to, const void* from, bool ok) { int n = ok ? 16 : 0; asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(n)); }
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
__device__ __forceinline__ void wait1() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
__device__ __forceinline__ void ldsm(u32* r, u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at)); }
__device__ __forceinline__ void ldsmt(u32* r, u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at)); }
__device__ __forceinline__ void ldsmt2(u32* r, u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at)); }
__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
struct V8 { float v[8]; };
__device__ __forceinline__ V8 open8(uint4 q) { V8 r; r.v[0] = lo(q.x); r.v[1] = hi(q.x); r.v[2] = lo(q.y); r.v[3] = hi(q.y); r.v[4] = lo(q.z); r.v[5] = hi(q.z); r.v[6] = lo(q.w); r.v[7] = hi(q.w); return r; }
__device__ __forceinline__ V8 get8(const u16* p) { return open8(*(const uint4*)p); }
__device__ __forceinline__ void put8(u16* p, const V8& r) { *(uint4*)p = make_uint4(pack(r.v[0], r.v[1]), pack(r.v[2], r.v[3]), pack(r.v[4], r.v[5]), pack(r.v[6], r.v[7])); }
__device__ __forceinline__ void sts(u32 at, u32 v) { asm volatile("st.shared.b32 [%0], %1;" :: "r"(at), "r"(v) : "memory"); }
__device__ __forceinline__ uint4 lds4(u32 at) { uint4 v; asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory"); return v; }
extern __shared__ __align__(128) u16 pool_[];

// MODE 0: ReLU(. + bias); 1: . + bias + extra of the scene, and sums of magnitudes; 2: . where extra > 0; 3: . + extra; 4: as it is
template <int CIN, int COUT, int MODE>
__device__ __forceinline__ void conv(const u16* X, int ldx, const u16* Wt, const float* bias, u16* Y, int ldy, const u16* extra, int lde, float* psum, int images, int H, int W, int bands) {
  constexpr int P = (CIN / 8 | 1) * 8, TH = 16, TW = 32, IH = TH + 2, IW = TW + 2, CH = CIN / 8, NT = COUT / 8, ROOM = IH * IW * P > TH * TW * (COUT + 8) ? IH * IW * P : TH * TW * (COUT + 8);  // the results take the tile's place
  __shared__ float red[MODE == 1 ? 64 * (COUT + 1) : 1];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const u32 sw = smem(pool_), st = sw + 9 * COUT * P * 2;
  for (int i = tid; i < 9 * COUT * CH; i += 256) { int r = i / CH, c = i % CH; cp16(sw + (r * P + c * 8) * 2, Wt + r * CIN + c * 8, true); }
  const int tw = W / TW, per = tw * (H / TH), tiles = images * per;
  auto load = [&](int t, int b) {
    int n = t / per, q = t % per, y0 = (q / tw) * TH - 1, x0 = (q % tw) * TW - 1;
    const u16* base = X + (size_t)n * H * W * ldx;
    for (int i = tid; i < IH * IW * CH; i += 256) {
      int p = i / CH, c = i % CH, yy = y0 + p / IW, xx = x0 + p % IW;
      bool ok = yy >= 0 && yy < H && xx >= 0 && xx < W;
      cp16(st + (b * ROOM + p * P + c * 8) * 2, base + (ok ? ((size_t)yy * W + xx) * ldx + c * 8 : 0), ok);
    }
  };
  int t = blockIdx.x, buf = 0;
  if (t < tiles) load(t, 0);
  commit();
  float bv[NT][2];
  if (MODE <= 1) for (int j = 0; j < NT; j++) { bv[j][0] = bias[j * 8 + (lane & 3) * 2]; bv[j][1] = bias[j * 8 + (lane & 3) * 2 + 1]; }
  for (; t < tiles; t += gridDim.x, buf ^= 1) {
    if (t + gridDim.x < tiles) load(t + gridDim.x, buf ^ 1);
    commit(); wait1(); __syncthreads();
    float acc[4][NT][4];
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
      for (int j = 0; j < NT; j++) acc[m][j][0] = acc[m][j][1] = acc[m][j][2] = acc[m][j][3] = 0.f;
    const u32 ab = st + (buf * ROOM + (2 * warp * IW + (lane & 15)) * P + (lane >> 4) * 8) * 2;
    const u32 bb = sw + (((lane & 7) + ((lane >> 4) << 3)) * P + ((lane >> 3) & 1) * 8) * 2;
    constexpr int KS = CIN / 16, STEPS = 9 * KS;
    u32 a[2][4][4], b[2][COUT / 16][4];
    auto fetch = [&](int s, int k) {
      int tap = s / KS, ks = s % KS;
#pragma unroll
      for (int j = 0; j < COUT / 16; j++) ldsm(b[k][j], bb + ((tap * COUT + j * 16) * P + ks * 16) * 2);
#pragma unroll
      for (int m = 0; m < 4; m++) ldsm(a[k][m], ab + ((((m >> 1) + tap / 3) * IW + (m & 1) * 16 + tap % 3) * P + ks * 16) * 2);
    };
    fetch(0, 0);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      if (s + 1 < STEPS) fetch(s + 1, (s + 1) & 1);
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int j = 0; j < COUT / 16; j++) { mma(acc[m][2 * j], a[s & 1][m], b[s & 1][j][0], b[s & 1][j][1]); mma(acc[m][2 * j + 1], a[s & 1][m], b[s & 1][j][2], b[s & 1][j][3]); }
    }
    __syncthreads();  // everybody has read this tile: its place takes the results
    constexpr int SP = COUT + 8, NCH = COUT / 8, TPC = 256 / NCH * NCH, STEP = TPC / NCH, ITER = (TH * TW + STEP - 1) / STEP;
    const u32 stage = st + buf * ROOM * 2;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const u32 row = stage + ((2 * warp + (m >> 1)) * TW + (m & 1) * 16 + (lane >> 2) + 8 * half) * SP * 2 + (lane & 3) * 4;
#pragma unroll
        for (int j = 0; j < NT; j++) {
          float v0 = acc[m][j][2 * half], v1 = acc[m][j][2 * half + 1];
          if (MODE <= 1) { v0 += bv[j][0]; v1 += bv[j][1]; }
          if (MODE == 0) { v0 = fmaxf(v0, 0.f); v1 = fmaxf(v1, 0.f); }
          sts(row + j * 16, pack(v0, v1));
        }
      }
    const int n = t / per, q = t % per, c = tid % NCH, p0 = tid / NCH;
    const size_t first = ((size_t)n * H + (q / tw) * TH) * W + (q % tw) * TW, firste = MODE == 1 ? ((size_t)(n / bands) * H + (q / tw) * TH) * W + (q % tw) * TW : first;
    uint4 e[MODE >= 1 && MODE <= 3 ? ITER : 1];
    if (MODE >= 1 && MODE <= 3) {
#pragma unroll
      for (int k = 0; k < ITER; k++) { int p = p0 + k * STEP; if (tid < TPC && p < TH * TW) e[k] = *(const uint4*)(extra + (firste + (size_t)(p / TW) * W + p % TW) * lde + c * 8); }
    }
    __syncthreads();
    float sums[8];
    if (MODE == 1) {
#pragma unroll
      for (int k = 0; k < 8; k++) sums[k] = 0.f;
    }
#pragma unroll
    for (int k = 0; k < ITER; k++) {
      int p = p0 + k * STEP;
      if (tid < TPC && p < TH * TW) {
        uint4 v = lds4(stage + p * SP * 2 + c * 16);
        u16* to = Y + (first + (size_t)(p / TW) * W + p % TW) * ldy + c * 8;
        if (MODE >= 1 && MODE <= 3) {
          V8 x = open8(v), w = open8(e[k]);
#pragma unroll
          for (int i = 0; i < 8; i++) {
            if (MODE == 2) x.v[i] = w.v[i] > 0.f ? x.v[i] : 0.f; else x.v[i] += w.v[i];
            if (MODE == 1) sums[i] += fabsf(x.v[i]);
          }
          put8(to, x);
        } else *(uint4*)to = v;
      }
    }
    if (MODE == 1) {
      if (tid < TPC)
#pragma unroll
        for (int k = 0; k < 8; k++) red[p0 * (COUT + 1) + c * 8 + k] = sums[k];
      __syncthreads();
      if (tid < COUT) { float v = 0.f; for (int k = 0; k < STEP; k++) v += red[k * (COUT + 1) + tid]; psum[(size_t)t * COUT + tid] = v; }
    }
    __syncthreads();
  }
}
#define CONV(CIN, COUT, MODE) extern "C" __global__ void __launch_bounds__(256, 1) conv_##CIN##_##COUT##_##MODE(const u16* X, int ldx, const u16* Wt, const float* bias, u16* Y, int ldy, const u16* extra, int lde, float* psum, int images, int H, int W, int bands) { conv<CIN, COUT, MODE>(X, ldx, Wt, bias, Y, ldy, extra, lde, psum, images, H, W, bands); }
CONV(48, 48, 0) CONV(32, 48, 1) CONV(48, 32, 2) CONV(48, 48, 3) CONV(32, 48, 4) CONV(48, 32, 4)

// part[block][tap][ci][co] = sum over pixels of X[pixel + tap][ci] D[pixel][co]; pbias[block][co] = sum of D. 18 warps: 9 taps, two halves of co
template <int CI, int CO>
__device__ __forceinline__ void wgrad(const u16* X, int ldx, const u16* D, int ldd, float* part, float* pbias, int images, int H, int W) {
  constexpr int PX = (CI / 8 | 1) * 8, PD = (CO / 8 | 1) * 8, T = 16, I = 18, CX = CI / 8, CD = CO / 8, STAGE = I * I * PX + T * T * PD, M = CI / 16;
  static_assert(CO == 48, "three n8 tiles per half");
  __shared__ float red[9 * CO];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, tap = warp >> 1, nh = warp & 1, dy = tap / 3, dx = tap % 3;
  const u32 base = smem(pool_);
  const int tw = W / T, per = tw * (H / T), tiles = images * per;
  auto load = [&](int t, int b) {
    int n = t / per, q = t % per, y0 = (q / tw) * T, x0 = (q % tw) * T;
    const u16 *x = X + (size_t)n * H * W * ldx, *d = D + (size_t)n * H * W * ldd;
    u32 to = base + b * STAGE * 2;
    for (int i = tid; i < I * I * CX; i += 576) {
      int p = i / CX, c = i % CX, yy = y0 - 1 + p / I, xx = x0 - 1 + p % I;
      bool ok = yy >= 0 && yy < H && xx >= 0 && xx < W;
      cp16(to + (p * PX + c * 8) * 2, x + (ok ? ((size_t)yy * W + xx) * ldx + c * 8 : 0), ok);
    }
    for (int i = tid; i < T * T * CD; i += 576) { int p = i / CD, c = i % CD; cp16(to + (I * I * PX + p * PD + c * 8) * 2, d + ((size_t)(y0 + p / T) * W + x0 + p % T) * ldd + c * 8, true); }
  };
  float acc[M][3][4], ones[3][4];
#pragma unroll
  for (int j = 0; j < 3; j++)
#pragma unroll
    for (int k = 0; k < 4; k++) { ones[j][k] = 0.f;
#pragma unroll
      for (int i = 0; i < M; i++) acc[i][j][k] = 0.f; }
  const u32 one[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
  int t = blockIdx.x, buf = 0;
  if (t < tiles) load(t, 0);
  commit();
  for (; t < tiles; t += gridDim.x, buf ^= 1) {
    if (t + gridDim.x < tiles) load(t + gridDim.x, buf ^ 1);
    commit(); wait1(); __syncthreads();
    const u32 to = base + buf * STAGE * 2;
    const u32 ab = to + ((dy * I + dx + (lane & 7) + ((lane >> 4) << 3)) * PX + ((lane >> 3) & 1) * 8) * 2;
    const u32 bb = to + (I * I * PX + ((lane & 7) + (((lane >> 3) & 1) << 3)) * PD + (lane >> 4) * 8 + nh * 24) * 2;
    const u32 b2 = to + (I * I * PX + (lane & 15) * PD + 16 + nh * 24) * 2;
    u32 a[2][M][4], b[2][6];
    auto fetch = [&](int r, int k) {
#pragma unroll
      for (int i = 0; i < M; i++) ldsmt(a[k][i], ab + (r * I * PX + i * 16) * 2);
      ldsmt(b[k], bb + r * T * PD * 2); ldsmt2(b[k] + 4, b2 + r * T * PD * 2);
    };
    fetch(0, 0);
#pragma unroll
    for (int r = 0; r < T; r++) {
      if (r + 1 < T) fetch(r + 1, (r + 1) & 1);
#pragma unroll
      for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < 3; j++) mma(acc[i][j], a[r & 1][i], b[r & 1][2 * j], b[r & 1][2 * j + 1]);
      if (tap == r % 9)
#pragma unroll
        for (int j = 0; j < 3; j++) mma(ones[j], one, b[r & 1][2 * j], b[r & 1][2 * j + 1]);
    }
    __syncthreads();
  }
  float* out = part + ((size_t)blockIdx.x * 9 + tap) * CI * CO;
#pragma unroll
  for (int i = 0; i < M; i++)
#pragma unroll
    for (int j = 0; j < 3; j++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        *(float2*)(out + (i * 16 + (lane >> 2) + 8 * half) * CO + nh * 24 + j * 8 + (lane & 3) * 2) = make_float2(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
  if (lane < 4)
#pragma unroll
    for (int j = 0; j < 3; j++) { red[tap * CO + nh * 24 + j * 8 + lane * 2] = ones[j][0]; red[tap * CO + nh * 24 + j * 8 + lane * 2 + 1] = ones[j][1]; }
  __syncthreads();
  if (tid < CO) { float v = 0.f; for (int k = 0; k < 9; k++) v += red[k * CO + tid]; pbias[(size_t)blockIdx.x * CO + tid] = v; }
}
#define WGRAD(CI, CO) extern "C" __global__ void __launch_bounds__(576, 1) wgrad_##CI##_##CO(const u16* X, int ldx, const u16* D, int ldd, float* part, float* pbias, int images, int H, int W) { wgrad<CI, CO>(X, ldx, D, ldd, part, pbias, images, H, W); }
WGRAD(48, 48) WGRAD(32, 48)

extern "C" __global__ void reduce_w(const float* part, const float* pbias, float* dw, float* db, int blocks, int ci, int co) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, all = 9 * ci * co;
  float v = 0.f;
  if (i < all) {
#pragma unroll 22
    for (int b = 0; b < blocks; b++) v += part[(size_t)b * all + i];
    int o = i % co, c = (i / co) % ci, tap = i / (co * ci);
    dw[(o * ci + c) * 9 + tap] = v;
  } else if (i - all < co) {
#pragma unroll 22
    for (int b = 0; b < blocks; b++) v += pbias[(size_t)b * co + i - all];
    db[i - all] = v;
  }
}
// wf[tap][co][ci], wd[tap][ci][co] with the taps in reverse
extern "C" __global__ void prepare_w(const float* w, u16* wf, u16* wd, int co, int ci) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= 9 * ci * co) return;
  int tap = i % 9, c = (i / 9) % ci, o = i / (9 * ci);
  u16 v = (u16)(pack(w[i], 0.f) & 0xffffu);
  wf[(tap * co + o) * ci + c] = v;
  wd[((8 - tap) * ci + c) * co + o] = v;
}
extern "C" __global__ void pool_fwd(const u16* y, u16* p, int scenes, int bands, int pixels, int width, int own) {
  const int sh = width - own, ch = sh / 8;
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (long long)scenes * pixels * ch) return;
  int c = i % ch, x = (i / ch) % pixels, s = i / ((long long)ch * pixels);
  V8 mean, most;
#pragma unroll
  for (int k = 0; k < 8; k++) { mean.v[k] = 0.f; most.v[k] = -1e30f; }
#pragma unroll 4
  for (int b = 0; b < bands; b++) {
    V8 v = get8(y + ((size_t)(s * bands + b) * pixels + x) * width + own + c * 8);
#pragma unroll
    for (int k = 0; k < 8; k++) { mean.v[k] += v.v[k]; most.v[k] = fmaxf(most.v[k], v.v[k]); }
  }
#pragma unroll
  for (int k = 0; k < 8; k++) mean.v[k] /= bands;
  u16* to = p + ((size_t)s * pixels + x) * 2 * sh + c * 8;
  put8(to, mean); put8(to + sh, most);
}
extern "C" __global__ void pool_bwd(const u16* y, const u16* p, const u16* dp, u16* dy, int scenes, int bands, int pixels, int width, int own) {
  const int sh = width - own, ch = sh / 8;
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (long long)scenes * pixels * ch) return;
  int c = i % ch, x = (i / ch) % pixels, s = i / ((long long)ch * pixels);
  size_t at = ((size_t)s * pixels + x) * 2 * sh + c * 8;
  V8 most = get8(p + at + sh), dmean = get8(dp + at), dmost = get8(dp + at + sh), count;
#pragma unroll
  for (int k = 0; k < 8; k++) count.v[k] = 0.f;
#pragma unroll 4
  for (int b = 0; b < bands; b++) {
    V8 v = get8(y + ((size_t)(s * bands + b) * pixels + x) * width + own + c * 8);
#pragma unroll
    for (int k = 0; k < 8; k++) count.v[k] += v.v[k] == most.v[k];
  }
#pragma unroll
  for (int k = 0; k < 8; k++) { dmean.v[k] /= bands; dmost.v[k] /= fmaxf(count.v[k], 1.f); }
#pragma unroll 4
  for (int b = 0; b < bands; b++) {
    size_t to = ((size_t)(s * bands + b) * pixels + x) * width + own + c * 8;
    V8 v = get8(y + to), d;
#pragma unroll
    for (int k = 0; k < 8; k++) d.v[k] = v.v[k] > 0.f ? dmean.v[k] + (v.v[k] == most.v[k] ? dmost.v[k] : 0.f) : 0.f;
    put8(dy + to, d);
  }
}
// s = 2 sigmoid(excite ReLU(squeeze m)); m1, h1 end with a one
extern "C" __global__ void mlp_fwd(const float* psum, const float* ws, const float* bs, const float* we, const float* be, float* s, float* m1, float* h1, int per, int width, int mid, float scale) {
  __shared__ float m[256], h[64];
  int n = blockIdx.x, c = threadIdx.x;
  if (c < width) { float v = 0.f; for (int k = 0; k < per; k++) v += psum[((size_t)n * per + k) * width + c]; m[c] = v * scale; m1[n * (width + 1) + c] = m[c]; }
  if (c == width) m1[n * (width + 1) + c] = 1.f;
  __syncthreads();
  if (c < mid) { float v = bs[c]; for (int k = 0; k < width; k++) v += ws[c * width + k] * m[k]; h[c] = fmaxf(v, 0.f); h1[n * (mid + 1) + c] = h[c]; }
  if (c == mid) h1[n * (mid + 1) + c] = 1.f;
  __syncthreads();
  if (c < width) { float v = be[c]; for (int k = 0; k < mid; k++) v += we[c * mid + k] * h[k]; s[n * width + c] = 2.f / (1.f + __expf(-v)); }
}
extern "C" __global__ void mlp_bwd(const float* dsp, const float* s, const float* h1, const float* ws, const float* we, float* dpre, float* dh, float* dm, int per, int width, int mid, float scale) {
  __shared__ float p[256], h[64];
  int n = blockIdx.x, c = threadIdx.x;
  if (c < width) { float v = 0.f, f = s[n * width + c]; for (int k = 0; k < per; k++) v += dsp[((size_t)n * per + k) * width + c]; p[c] = v * f * (1.f - 0.5f * f); dpre[n * width + c] = p[c]; }
  __syncthreads();
  if (c < mid) { float v = 0.f; for (int k = 0; k < width; k++) v += we[k * mid + c] * p[k]; h[c] = h1[n * (mid + 1) + c] > 0.f ? v : 0.f; dh[n * mid + c] = h[c]; }
  __syncthreads();
  if (c < width) { float v = 0.f; for (int k = 0; k < mid; k++) v += ws[k * width + c] * h[k]; dm[n * width + c] = v * scale; }
}
extern "C" __global__ void scale_add(const u16* x, const u16* z, const float* s, u16* out, long long chunks, int pixels, int width) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= chunks) return;
  int ch = width / 8, c = i % ch, n = i / ((long long)ch * pixels);
  V8 a = get8(x + i * 8), b = get8(z + i * 8);
  const float* f = s + n * width + c * 8;
#pragma unroll
  for (int k = 0; k < 8; k++) a.v[k] += b.v[k] * f[k];
  put8(out + i * 8, a);
}
// dsp[image][part][c] = sum of g z; 192 or 384 threads: width / 8 chunks x 32 pixels
extern "C" __global__ void ds_reduce(const u16* g, const u16* z, float* dsp, int pixels, int width) {
  __shared__ float red[32 * 97];
  int ch = width / 8, c = threadIdx.x % ch, l = threadIdx.x / ch, each = pixels / gridDim.y;
  V8 sum;
#pragma unroll
  for (int k = 0; k < 8; k++) sum.v[k] = 0.f;
  size_t base = (size_t)blockIdx.x * pixels + blockIdx.y * each;
#pragma unroll 4
  for (int p = l; p < each; p += 32) {
    V8 a = get8(g + (base + p) * width + c * 8), b = get8(z + (base + p) * width + c * 8);
#pragma unroll
    for (int k = 0; k < 8; k++) sum.v[k] += a.v[k] * b.v[k];
  }
  for (int k = 0; k < 8; k++) red[l * (width + 1) + c * 8 + k] = sum.v[k];
  __syncthreads();
  if (threadIdx.x < width) { float v = 0.f; for (int k = 0; k < 32; k++) v += red[k * (width + 1) + threadIdx.x]; dsp[((size_t)blockIdx.x * gridDim.y + blockIdx.y) * width + threadIdx.x] = v; }
}
extern "C" __global__ void dz_kernel(const u16* g, const u16* z, const float* s, const float* dm, u16* dz, u16* dpool, int scenes, int bands, int pixels, int width) {
  const int ch = width / 8;
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (long long)scenes * pixels * ch) return;
  int c = i % ch, x = (i / ch) % pixels, sc = i / ((long long)ch * pixels);
  V8 sum;
#pragma unroll
  for (int k = 0; k < 8; k++) sum.v[k] = 0.f;
#pragma unroll 4
  for (int b = 0; b < bands; b++) {
    int n = sc * bands + b;
    size_t at = ((size_t)n * pixels + x) * width + c * 8;
    V8 a = get8(g + at), w = get8(z + at), d;
    const float *f = s + n * width + c * 8, *e = dm + n * width + c * 8;
#pragma unroll
    for (int k = 0; k < 8; k++) { d.v[k] = a.v[k] * f[k] + (w.v[k] > 0.f ? e[k] : w.v[k] < 0.f ? -e[k] : 0.f); sum.v[k] += d.v[k]; }
    put8(dz + at, d);
  }
  put8(dpool + ((size_t)sc * pixels + x) * width + c * 8, sum);
}
// optics.axis_matrix: filtering with mirrored borders and sampling, as a matrix
extern "C" __global__ void axis_matrix(const float* taps, float* out, long long total, int half, int rows, int size, int ratio, int phase) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total) return;
  int j = i % size, r = (i / size) % rows, n = 2 * half + 1;
  const float* t = taps + (i / ((long long)size * rows)) * n;
  int k = r * ratio + phase + half, d = k - j, l = k + j, m = k - (2 * size - 2 - j);
  float v = d >= 0 && d < n ? t[d] : 0.f;
  if (j >= 1 && j <= half && l >= 0 && l < n) v += t[l];
  if (j >= size - half - 1 && j <= size - 2 && m >= 0 && m < n) v += t[m];
  out[i] = v;
}
