/* Dot products of vectors of signs, 64 entries a word: the kernel behind itrd.export.packed.
 *
 * a, v (rows, words): bit 1 of a stands for +1 and bit 0 for -1 where v has bit 1; entries without it are zero.
 * w (filters, words): the same of the weights, none of which is zero.
 * out (rows, filters): sum of a * w = valid entries - 2 * entries that differ.
 */
#include <stddef.h>
#include <stdint.h>

void itrd_packed_dots(const uint64_t *restrict a, const uint64_t *restrict v, const uint64_t *restrict w,
                      float *restrict out, size_t rows, size_t filters, size_t words)
{
    for (size_t r = 0; r < rows; r++, a += words, v += words, out += filters) {
        int64_t valid = 0;
        for (size_t k = 0; k < words; k++)
            valid += __builtin_popcountll(v[k]);
        for (size_t f = 0; f < filters; f++) {
            int64_t differ = 0;
            for (size_t k = 0; k < words; k++)
                differ += __builtin_popcountll((a[k] ^ w[f * words + k]) & v[k]);
            out[f] = (float)(valid - 2 * differ);
        }
    }
}
